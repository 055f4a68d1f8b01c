"""Chat templates that ask for too much time, memory or text, or break in every way that jinja2 offers."""

from itertools import product

SHIELD = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
RANGE = "range(99999)"


def loop(body: str, times: int = 99999) -> str:
    """Return a loop of jinja2."""
    return f"{{% for i in range({times}) %}}{body}{{% endfor %}}"


def nested(first: str, step: str, times: int) -> str:
    """Return a loop in which the value n.x is made of itself again and again."""
    return f"{{% set n = namespace(x={first}, y={first}) %}}" + loop(f"{{% set n.x = {step} %}}", times)


# What grows a value, by how it is written: BIG is a number, TEXT a long text, NEST a value in many values.
GROWING = {
    "multiplied": "{{ 'a' * BIG }}",
    "to the power of": "{{ 9 ** (9 ** 9) }}",
    "power of a text": "{{ ('9' * 5000) | int ** BIG }}",
    "many in a list": "{{ [0] * BIG }}",
    "centred": "{{ 'a' | center(BIG) }}",
    "indented": "{{ 'a' | indent(BIG, true) }}",
    "formatted": "{{ '%BIGd' | format(1) }}",
    "formatted by %": "{{ '%BIGd' % 1 }}",
    "format()": "{{ '{:>BIG}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(BIG) }}",
    "zfill": "{{ 'a'.zfill(BIG) }}",
    "expandtabs": "{{ '\t'.expandtabs(BIG) }}",
    "to_bytes": "{{ (1).to_bytes(BIG, 'big') }}",
    "a batch of": "{{ [1] | batch(BIG, 'x') | list }}",
    "a slice of": "{{ [1] | slice(BIG) | list }}",
    "json with blanks": "{{ [[[1]]] | tojson(indent=BIG) }}",
    "a range": "{{ range(BIG) | list }}",
    "a range of a range": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops of text": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "a sum": "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "joined": "{{ range(99999) | join('a' * 99999) }}",
    "join()": "{{ ('b' * 99999).join(('a' * 99999) | list) }}",
    "replaced": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "replace()": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "wrapped": "{{ ('a ' * 99999) | wordwrap(1, wrapstring='b' * 99999) }}",
    "translated": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "filtered": loop("{{ " + RANGE + " | map('string') | select | list | length }}"),
    "sorted": "{% for i in range(99999) %}{{ range(99999) | sort(reverse=true) | first }}{% endfor %}",
    "unique": "{% for i in range(99999) %}{{ range(99999) | unique | list | length }}{% endfor %}",
    "grouped": "{% for i in range(999) %}{{ range(99999) | groupby('real') | length }}{% endfor %}",
    "doubled": nested("'a'", "n.x ~ n.x", 99) + "{{ n.x }}",
    "added": nested("'a'", "n.x + n.x", 99) + "{{ n.x }}",
    "nested as json": nested("[1]", "[n.x, n.x]", 99) + "{{ n.x | tojson }}",
    "nested as text": nested("[1]", "[n.x, n.x]", 40) + "{{ n.x }}",
    "nested and compared": nested("[1]", "[n.x, n.x] %}{% set n.y = [n.y, n.y]", 60) + "{{ n.x == n.y }}",
    "nested as a key": nested("(1,)", "(n.x, n.x)", 60) + "{{ {n.x: 1} | length }}",
    "nested deep": nested("[1]", "[n.x]", 99999) + "{{ n.x | tojson }}",
    "a macro of itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
    "two macros of itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a loop of itself": "{% for x in [1] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "a call block": "{% macro f() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call f() %}{% for i in range(99999) %}{% endfor %}{% endcall %}",
    "a filter block": "{% filter replace('a', 'b' * 99999) %}" + loop("aaaa") + "{% endfilter %}",
    "a set block": "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}{{ x }}",
    "strftime": "{{ strftime_now('%Y' * BIG) }}",
    "long numbers": "{{ (10 ** 4000000) | string }}",
    "lorem": "{{ lipsum(n=99999, min=9999, max=99999) }}",
    "urlize": "{{ ('http://a.b/(' * 99999) | urlize }}",
    "striptags": "{{ ('<!--' * 99999) | striptags }}",
    "pprint": loop("{{ range(99999) | list | pprint }}"),
    "split": "{% for i in range(99999) %}{{ ('a ' * 99999).split() | length }}{% endfor %}",
    "dict of": "{% for i in range(99999) %}{{ dict.fromkeys(range(99999)) | length }}{% endfor %}",
    "an attribute of": loop("{{ " + RANGE + " | map(attribute='real') | list | length }}"),
    "a test": "{% for i in range(99999) %}{{ 99998 in (range(99999) | list) }}{% endfor %}",
    "round": "{{ 1.5 | round(BIG) }}",
    "truncate": "{{ ('a' * 99999) | truncate(BIG) }}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "xmlattr": "{% for i in range(99999) %}{{ dict(a='b' * 99999) | xmlattr }}{% endfor %}",
    "thrown": "{{ raise_exception('a' * 99999999) }}",
}
BIG = ("10000000000", "300000000", "99999999999999999999")
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ dict.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "{% extends 'x' %}",
    "{{ (''.format).__self__ }}",
    "{{ (1).__add__(1) }}",
    "{{ open('CANARY', 'w') }}",
    "{{ __import__('os') }}",
)
BROKEN = (
    "{{",
    "{% for %}",
    "{% for m in messages %}",
    "{{ 1 / 0 }}",
    "{{ 1 % 0 }}",
    "{{ range(10**9) }}",
    "{{ messages[99].role }}",
    "{{ nothing.of.it }}",
    "{{ messages | nothing }}",
    "{{ 'a' | int + 'b' }}",
    "{{ raise_exception() }}",
    "{{ messages() }}",
    "{{ (1.0e308 * 10) | int }}",
    "{{ '\ud800' }}{{ messages[0].content.encode('utf-16') }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "[" * 100000 + " }}",
    "{% if 1 %}" * 3000,
    "{{ " + "-" * 5000 + "1 }}",
    "{% set x = " + " ~ ".join(["'a'"] * 20000) + " %}{{ x }}",
)


def growing(sizes: tuple[str, ...] = BIG) -> dict[str, str]:
    """Return templates that ask for too much, by a name; some write the conversation as well."""
    made = {}
    for (name, text), size, shield in product(GROWING.items(), sizes, ("", SHIELD)):
        if "BIG" in text or size == sizes[0]:
            made[f"{name}, {size}{', and turns' * bool(shield)}"] = shield + text.replace("BIG", size)
    return made
