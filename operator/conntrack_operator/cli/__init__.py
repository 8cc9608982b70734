"""The command line: one module a command, each with its options and what it does; `render` is pure.

A command's module is imported when that command is asked for and not before: the agent is this program too, and
its memory is counted.
"""
