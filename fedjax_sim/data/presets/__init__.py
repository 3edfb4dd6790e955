"""The field's data sets by name: read from the files that their authors publish, prepared as the field prepares them.

One module per family. Every function reads files that are on this machine and says where they come from when they are not;
nothing downloads. All of them are in ``fedjax_sim.data``, and ``fs.data.load("heart_disease:FOLDER")`` finds them by name.
"""
