"""The rivals, each as its own documentation would have it. A file runs in the virtual environment of its own name.txt.

All take a JPEG and answer with `{"classes": [5 numbers], "probabilities": [5 numbers]}`, or with what their protocol
makes of that. What is not the framework is in `work`. A new one needs its file, its pins (`pip freeze`) and a line in
`loadtest.compare.servers`.
"""
