"""The command `dcp-clip` and its programs.

They are not inside `dcp_clip`, because importing that package takes seconds: the programs parse
their arguments first, and import it afterwards.
"""
