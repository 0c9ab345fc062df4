"""Other model servers, each in a file of its own, and ours, for `bench.peers`: how they start and how they are asked.

A rival's file says what to install, what to run and how to ask; what runs in the server's own processes is the file of
the same name in `inside`. Behind each are the same torch models, one worker process per model, with one torch thread;
otherwise its own defaults, or what its documents advise for speed.
"""
