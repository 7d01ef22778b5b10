"""Values that mean something on the server under test, in place of those that the document gives as examples.

CAMPANILE_EXAMPLES holds them as JSON: by the beginning of a path, of which the longest counts, each example with what is said
instead, one after another.
"""

import itertools
import json
import os

import schemathesis

INSTEAD = {
    path: {example: itertools.cycle(values) for example, values in examples.items()}
    for path, examples in json.loads(os.environ["CAMPANILE_EXAMPLES"]).items()
}


def with_real_values(value, instead):
    if isinstance(value, dict):
        return {name: with_real_values(member, instead) for name, member in value.items()}
    if isinstance(value, list):
        return [with_real_values(element, instead) for element in value]
    if isinstance(value, str):
        for example, values in instead.items():
            if example in value:
                value = value.replace(example, next(values))
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    instead = INSTEAD[max(filter(case.operation.path.startswith, INSTEAD), key=len)]
    case.path_parameters = with_real_values(case.path_parameters, instead)
    case.query = with_real_values(case.query, instead)
    case.body = with_real_values(case.body, instead)
