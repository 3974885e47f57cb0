"""A page that tries a network without a board: `python -m atalaia.browser --workdir=RUN`.

__main__.py makes the C of a run's int8 file, compiles it to WebAssembly, and writes all into one index.html. fit.js
brings a frame to the network's input as the data set does it, page.js runs the camera and photos through the network,
page.css is its look, beside that of the report. The report of a run, report.html, is another page: atalaia/page.py.
"""
