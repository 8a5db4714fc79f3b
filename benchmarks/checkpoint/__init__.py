"""Saving and loading optimizer state, against the plain disk and other libraries, in one run.

``python -m benchmarks.checkpoint [--parameters N] [--rounds R] [--folder DIR] [--json FILE]``
``[--only 'WORD|WORD'] [--cold] [--state FILE]``

Every measurement is a process of its own, on the same disk, in turns. What is saved is the state of
N parameters in matrices of 4096 x 4096, their moments those of a model that was really trained
(`benchmarks.checkpoint.state`), coded by LUMA for LUMA and in float32 for the AdamW of the others.
Each contender's files are synced before the clock stops, and dropped from the page cache before
they are read. ``of plain`` is the speed over that of a plain write or read of the bytes, for
conversions over that of a copy of the larger side. ``peak`` is memory over that of the process
before, without the loaded state itself and without pages of mapped files; Linux only.

Memory is used and freed just before each measurement, unless ``--cold`` is given
(`benchmarks.checkpoint.measure.used_memory` says why). Rows that the machine has no memory for are
left out, which is printed.
"""
