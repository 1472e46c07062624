"""For the reference: what a docstring says under "Returns:" is one text, whatever colons it holds.

The parser takes what stands before the first colon for a type; here types are in the signature, which is put there.
"""

import re

import griffe

RETURNS = re.compile(r"(?m)^( *)Returns:\n\1    (?=\S)")


class WholeReturns(griffe.Extension):
    """Writes the annotated type of every function in front of the text under its "Returns:"."""

    def on_function(self, *, func: griffe.Function, **_) -> None:
        """Called with every function that has been read."""
        if func.docstring is not None:
            kind = str(func.returns or "").strip("'\"")
            func.docstring.value = RETURNS.sub(lambda match: f"{match[0]}{kind}: ", func.docstring.value)
