"""One file, one target: ``TestOneInput``, and ``seeds`` that a run without a corpus starts from."""
