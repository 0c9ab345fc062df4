"""What tests of several folders share. On the path of tests only."""
