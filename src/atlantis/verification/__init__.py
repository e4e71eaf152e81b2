"""Is a completion right? Answers extracted, graded in processes of their own, counted honestly.

Imports torch nowhere: a worker process starts in half a second.
"""
