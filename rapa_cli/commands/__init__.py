"""The subcommands of `rapa`, one module each: parse, call one public function, show the result.

The modules are imported at every start, so they import nothing heavy at their top.
"""
