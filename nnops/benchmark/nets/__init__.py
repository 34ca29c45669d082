"""Whole nets: torch's model beside nnops.convert() of it, checked, timed and weighed.

zoo        the nets that are measured, and how a user's own is found
check      refuses to time wrong numbers: scores and the gradients of all parameters
calls      what is timed: a training step and a forward, by nnops, torch and the peers
layers     the same net layer by layer
memory     bytes saved for backward and peak memory, in fresh processes
engine     every net x size x batch x layout x ISA x threads: rows
"""
