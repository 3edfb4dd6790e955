"""Files that hold data sets, one module per format, and what several of them share.

A format's function reads what is on this machine, checks it, and names the file in every error; nothing is unpickled or
evaluated. All of them are in ``fedjax_sim.data``.
"""
