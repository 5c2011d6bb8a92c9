"""The rivals, each written as its documentation recommends. NAME.py runs in the virtual environment of NAME.txt.

All take a JPEG and answer with `{"classes": [5 numbers], "probabilities": [5 numbers]}`, or its equivalent in their
protocol. Everything but the framework is in `work`. A new rival needs its file, its pins (`pip freeze`) and a line in
`loadtest.compare.servers`.
"""
