"""The ways to say each attribute of a product: tables only; `writing` puts them together.

Every phrase holds the value once, as `{v}`; `{it}` is the product. Sentences without a slot carry no value
and may close any text.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasing:
    """The ways to say one attribute."""

    predicates: tuple[str, ...]  # follow a subject: "It {comes in deep green}"
    attached: tuple[str, ...]  # follow a noun: "a desk lamp {in deep green}"
    sentences: tuple[str, ...]  # stand alone
    questions: tuple[str, ...]  # asked of {it}
    labels: tuple[str, ...]  # other names of the attribute in lists that people write


PHRASES = {
    "colour": Phrasing(
        ("comes in {v}", "is finished in {v}", "is sold in {v}"),
        ("in {v}", "in a shade of {v}"),
        ("The colour is {v}.", "Its colour, {v}, is easy to live with.", "You get it in {v}."),
        ("What colour is {it}?", "Which colour does {it} come in?", "What is the colour of {it}?"),
        ("colour", "shade"),
    ),
    "material": Phrasing(
        ("is made of {v}", "is built from {v}", "uses {v} throughout"),
        ("made of {v}", "in {v}", "built from {v}"),
        ("The material is {v}.", "The body is {v}.", "The makers chose {v} for it."),
        ("What is {it} made of?", "Which material is used for {it}?", "What material is {it}?"),
        ("material", "made of"),
    ),
    "price": Phrasing(
        ("costs {v}", "sells for {v}", "is yours for {v}"),
        ("for {v}", "priced at {v}"),
        ("The price is {v}.", "You pay {v}.", "It is on the shelf at {v}."),
        ("How much does {it} cost?", "What is the price of {it}?", "What do I pay for {it}?"),
        ("price", "cost"),
    ),
    "feature": Phrasing(
        ("stands out by its {v}", "is known for its {v}", "offers {v}"),
        ("with {v}", "known for its {v}"),
        ("Its best feature is {v}.", "People like the {v}.", "A special point: {v}."),
        ("What is special about {it}?", "Which feature does {it} have?", "What is the best feature of {it}?"),
        ("feature", "special"),
    ),
    "use": Phrasing(
        ("is made for {v}", "is ideal for {v}", "works well for {v}"),
        ("for {v}", "meant for {v}"),
        ("Think of {v}.", "It is at its best with {v}.", "We recommend it for {v}."),
        ("What is {it} for?", "What can I use {it} for?", "When is {it} useful?"),
        ("use", "good for"),
    ),
    "size": Phrasing(
        ("has a {v} shape", "keeps a {v} format", "takes a {v} place"),
        ("in a {v} format", "of {v} size"),
        ("The size is {v}.", "The format is {v}.", "Its place is {v}."),
        ("How big is {it}?", "What is the size of {it}?", "What format does {it} have?"),
        ("size", "format"),
    ),
    "style": Phrasing(
        ("has a {v} look", "shows a {v} line", "keeps a {v} style"),
        ("with a {v} look", "in a {v} style"),
        ("The style is {v}.", "Its {v} look fits many homes.", "The lines are {v}."),
        ("What style is {it}?", "What does {it} look like?", "Which style does {it} have?"),
        ("style", "look"),
    ),
    "care": Phrasing(
        ("needs no more than {v}", "is easy to look after ({v})", "carries a {v} label"),
        ("with a {v} label", "that needs only {v}"),
        ("Care: {v}.", "To keep it fresh: {v}.", "The label says {v}."),
        ("How do I care for {it}?", "What care does {it} need?", "How do I clean {it}?"),
        ("care", "cleaning"),
    ),
}

OPENINGS = (
    "The {name} is a {type}",
    "Meet the {name}, a {type}",
    "{name} is a {type}",
    "This is the {name}, a {type}",
    "Say hello to the {name}, a {type}",
    "Here is the {name}: a {type}",
    "Looking for a {type}? Take the {name}",
    "The {name} is a new kind of {type}",
)

CLOSINGS = (
    "A choice you will not regret.",
    "You will be glad to own it.",
    "It makes a fine gift.",
    "Order it today.",
    "Our customers keep coming back for it.",
    "It does its job without fuss.",
    "Simple, honest and good.",
    "What more could you want?",
)

OPINIONS = (
    "I have had it for a month and I am happy with it.",
    "My sister bought one too.",
    "It arrived on time and well packed.",
    "I was not sure at first, but now I would buy it again.",
    "For me it is good value.",
    "It could be a little better packed.",
    "My neighbours asked me where I found it.",
    "I use it nearly every day.",
)
