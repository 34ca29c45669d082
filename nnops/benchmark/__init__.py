"""Measures nnops beside torch, in one process: the engine behind `python -m nnops bench`.

calls      what is timed: the call of each mode, prepared from a sample of the operator database
check      refuses to time wrong numbers
timing     rounds in which the contestants alternate, and the ratios that come of them
limits     bandwidth and arithmetic of this machine, measured in the same run
memory     bytes saved for backward and peak memory, in fresh processes
engine     every sample x ISA x threads x mode: one row each
nets       the same for whole nets
results    the rows, as JSON lines
goals      goals.csv, and which of them are met
compare    two result files, with a noise band
report     tables for the terminal
plot       ratio bars and rooflines
"""
