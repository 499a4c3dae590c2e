"""The subcommands of `rapa`, one module each: parse, call one public function, show the result.

Beside them stands what several share: options, session, completion, tables. All are imported at every start, so they
import nothing heavy at their top.
"""
