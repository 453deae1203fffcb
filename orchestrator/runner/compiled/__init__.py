"""Compiled regions of torch devices: runs of stages, and what is between them, as one program for each size.

region     a region as generated code calls it
samples    values to compile and compare a region with
source     a region as a module that torch can export
build      export, compile and compare, in a process of its own; the only file that needs torch's compiler
package    what a build leaves in the store, and loading it without the compiler
load       keys, building what the store lacks, and loading
"""
