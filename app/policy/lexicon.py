"""The words of the starter's world: items, issues, steps, and every sentence a customer or a reply may contain.

A sentence template ends in exactly one of `.`, `!`, `?` and has none before it, so that a letter splits into sentences
without doubt. Slots: `{item}`, `{order}` (four digits), `{trouble}` (a name for the issue), `{days}`, `{name}`.
"""

from enum import StrEnum
from typing import NamedTuple

ITEMS = (
    "kettle", "lamp", "blender", "toaster", "backpack", "jacket", "camera", "printer", "keyboard", "speaker",
    "radio", "clock", "mirror", "chair", "tent", "bicycle", "drill", "heater", "guitar", "suitcase",
)  # fmt: skip
NAMES = ("Mia", "Tom", "Rosa", "Leo", "Vera", "Ben")
DAYS = ("two days", "three days", "four days", "five days", "a week", "two weeks")


class Issue(StrEnum):
    """What a customer writes about."""

    LATE = "late"
    DAMAGED = "damaged"
    COLOUR = "colour"
    PART = "part"
    CHARGE = "charge"
    CANCEL = "cancel"


class Step(StrEnum):
    """What a reply offers to do."""

    TRACK = "track"
    REPLACE = "replace"
    EXCHANGE = "exchange"
    SEND_PART = "send_part"
    UNDO_CHARGE = "undo_charge"
    CANCEL = "cancel"
    LABEL = "label"
    REFUND = "refund"


FITS: dict[Step, frozenset[Issue]] = {
    Step.TRACK: frozenset({Issue.LATE}),
    Step.REPLACE: frozenset({Issue.DAMAGED}),
    Step.EXCHANGE: frozenset({Issue.COLOUR}),
    Step.SEND_PART: frozenset({Issue.PART}),
    Step.UNDO_CHARGE: frozenset({Issue.CHARGE}),
    Step.CANCEL: frozenset({Issue.CANCEL}),
    Step.LABEL: frozenset({Issue.DAMAGED, Issue.COLOUR}),
    Step.REFUND: frozenset({Issue.LATE, Issue.DAMAGED, Issue.CANCEL}),
}

TROUBLES: dict[Issue, tuple[str, ...]] = {
    Issue.LATE: ("the late delivery", "the delay"),
    Issue.DAMAGED: ("the damage", "the broken goods"),
    Issue.COLOUR: ("the wrong colour", "the mix-up of colours"),
    Issue.PART: ("the missing part", "the incomplete box"),
    Issue.CHARGE: ("the double charge", "the second payment"),
    Issue.CANCEL: ("the cancellation", "your wish to cancel"),
}


class Part(StrEnum):
    """What a sentence does in a letter."""

    GREET = "greet"
    SORRY = "sorry"
    THANKS = "thanks"
    ACK = "acknowledge"
    ASK = "ask for the order number"
    STEP = "step"
    WHEN = "when"
    DODGE = "dodge"
    ASIDE = "aside"
    JAB = "jab"
    CLOSE = "close"
    SIGN = "sign"


class Register(StrEnum):
    """How a sentence sounds."""

    PLAIN = "plain"
    CURT = "curt"
    VAGUE = "vague"
    SLOPPY = "sloppy"
    RUDE = "rude"


class Template(NamedTuple):
    """One sentence with slots; `step` only where `part` is STEP."""

    part: Part
    register: Register
    text: str
    step: Step | None = None


_PLAIN: dict[Part, tuple[str, ...]] = {
    Part.GREET: ("Hello!", "Hi there!", "Good morning!", "Good afternoon!", "Dear customer!"),
    Part.SORRY: (
        "I am sorry about {trouble}.",
        "I am very sorry for the trouble with your {item}.",
        "Please accept our apology for {trouble}.",
        "I apologise for {trouble}.",
        "That should not have happened and I am sorry.",
    ),
    Part.THANKS: (
        "Thank you for your message about {trouble}.",
        "Thank you for writing to us about your {item}.",
        "Thanks for letting us know about {trouble}.",
        "Thank you for your patience.",
    ),
    Part.ACK: (
        "I have found order {order} for your {item}.",
        "I can see order {order} on my screen.",
        "I have opened order {order} and noted {trouble}.",
        "Your {item} is listed under order {order}.",
        "This is about order {order} and your {item}.",
        "Order {order} is open in front of me.",
        "I understand that this is about {trouble}.",
        "I have read your note about your {item}.",
        "I have looked into {trouble} for you.",
    ),
    Part.ASK: (
        "Could you send me your order number?",
        "May I have the order number?",
        "Which order number is on your receipt?",
    ),
    Part.WHEN: (
        "This will be done within {days}.",
        "Please allow {days} for this.",
        "Everything will be settled in {days}.",
        "I will write to you again in {days}.",
        "All of this takes about {days}.",
    ),
    Part.DODGE: (),
    Part.ASIDE: (
        "Our warehouse was painted blue last spring.",
        "My cousin once bought a {item} as well.",
        "The weather has kept all of us busy this month.",
        "Many people ask me how long I have worked here.",
        "I always say that a {item} is a little like a good friend.",
        "Before this job I used to sell garden chairs.",
        "Our office plant is doing much better now.",
        "By the way we also have a newsletter with recipes.",
        "On Fridays we often talk about the {item} over lunch.",
        "There is a new bakery next to our building.",
    ),
    Part.CLOSE: (
        "Please let me know if anything else is wrong.",
        "Thank you for giving us the chance to put this right.",
        "Just reply to this message if you need more help.",
        "We want you to be happy with your {item}.",
        "I am here if you have any questions.",
        "Have a lovely day!",
    ),
    Part.SIGN: ("Kind regards, {name}.", "Best wishes, {name}.", "Warm regards, {name}.", "Yours, {name}."),
}

_CURT: dict[Part, tuple[str, ...]] = {
    Part.ACK: (
        "Order {order}.",
        "Got order {order}.",
        "Order {order}, {item}.",
        "Seen the note on the {item}.",
        "Your {item}, noted.",
        "Re {trouble}.",
    ),
    Part.ASK: ("Order number?",),
    Part.WHEN: ("Takes {days}.", "Wait {days}.", "Done in {days}."),
    Part.SIGN: ("Regards, {name}.", "{name}."),
}

_VAGUE: dict[Part, tuple[str, ...]] = {
    Part.DODGE: (
        "We will look into your {item} at some point.",
        "Someone may get back to you about {trouble}.",
        "These things can happen with a {item}.",
        "Your case about the {item} has been passed along.",
        "We hope that {trouble} sorts itself out.",
        "There are several ways this could go.",
        "Perhaps something can be done about {trouble}.",
        "You may hear from us in due course.",
        "Maybe order {order} needs another look.",
        "Order {order} could be somewhere in the system.",
    ),
    Part.WHEN: ("It could take a while.", "Some time should pass first.", "There is no date for that yet."),
}

_SLOPPY: dict[Part, tuple[str, ...]] = {
    Part.GREET: ("heyy!", "hi hi!"),
    Part.SORRY: ("soryy about {trouble}.", "so sory for ur {item}.", "my bad about the {item} lol."),
    Part.ACK: (
        "i seen ur order {order}.",
        "ok so order {order} is ur {item} right?",
        "looked at order {order} realy quick.",
        "ur {item} is in order {order} i think.",
        "got ur msg about the {item}.",
    ),
    Part.ASK: ("whats ur order nr?",),
    Part.WHEN: ("shoud take {days} or so.", "mabye {days}."),
    Part.CLOSE: ("hope thats ok!", "thx for waiting!", "let me no if u need smth."),
    Part.SIGN: ("cheers, {name}.", "thx, {name}."),
}

_RUDE: dict[Part, tuple[str, ...]] = {
    Part.JAB: (
        "You should have read the page about the {item} first.",
        "Nobody else complains about {trouble}.",
        "It is hardly our fault that you bought a {item}.",
        "Please stop wasting our time.",
        "You clearly did not look at your {item} properly.",
        "Frankly we have more important customers.",
        "Next time think before you order a {item}.",
        "What do you want us to do about that?",
        "I am tired of messages about order {order}.",
        "Order {order} was fine until you touched it.",
        "Your complaint about {trouble} is rather silly.",
    ),
    Part.CLOSE: ("Do not write again.", "Find another shop if you like.", "That is all you will get from us."),
}

_STEPS: dict[Register, dict[Step, tuple[str, ...]]] = {
    Register.PLAIN: {
        Step.TRACK: (
            "I have asked the courier to find your {item} today.",
            "You can follow your parcel with the tracking link that I just sent.",
            "The courier will call you to agree on a delivery time.",
        ),
        Step.REPLACE: (
            "We will send you a new {item} free of charge.",
            "A replacement {item} leaves our warehouse today.",
            "You will get a brand new {item} in place of the broken one.",
        ),
        Step.EXCHANGE: (
            "We will swap your {item} for the right colour.",
            "The {item} in the colour that you chose goes out today.",
            "I have set aside a {item} in the right colour for you.",
        ),
        Step.SEND_PART: (
            "We will post the missing part to you today.",
            "The part that was left out is already in the mail.",
            "I have ordered the missing part for your {item}.",
        ),
        Step.UNDO_CHARGE: (
            "I have returned the second payment to your card.",
            "The extra charge will be taken off your bill.",
            "Our bank is sending the double payment back to you.",
        ),
        Step.CANCEL: (
            "I have cancelled the order for you.",
            "Your order for the {item} is cancelled as you asked.",
            "I have stopped the shipment of your {item}.",
        ),
        Step.LABEL: (
            "I have sent you a free label to post the {item} back.",
            "Please use the prepaid label to return your {item}.",
            "A driver will collect the {item} from your door at no cost.",
        ),
        Step.REFUND: (
            "You will get all your money back for the {item}.",
            "I have refunded the full price of your {item}.",
            "The full amount goes back to your card today.",
        ),
    },
    Register.CURT: {
        Step.TRACK: ("Courier asked about the {item}.", "Check the tracking link."),
        Step.REPLACE: ("New {item} sent.", "Replacement {item} on its way."),
        Step.EXCHANGE: ("Right colour {item} sent.", "Swapping the {item} colour."),
        Step.SEND_PART: ("Missing part sent.", "Part for the {item} posted."),
        Step.UNDO_CHARGE: ("Second payment returned.", "Extra charge for the {item} removed."),
        Step.CANCEL: ("Order cancelled.", "The {item} order is stopped."),
        Step.LABEL: ("Return label for the {item} sent.", "Use the return label."),
        Step.REFUND: ("Money for the {item} refunded.", "Full refund done."),
    },
    Register.SLOPPY: {
        Step.TRACK: ("il ask teh courier were ur {item} is.", "heres the traking link for u."),
        Step.REPLACE: ("we gona send a new {item}.", "u get a nother {item} for free."),
        Step.EXCHANGE: ("il swap ur {item} for teh rite colour.", "teh rite colour {item} is comming."),
        Step.SEND_PART: ("we send teh missing part.", "il post teh part for ur {item}."),
        Step.UNDO_CHARGE: ("u get teh second payment back.", "il fix teh extra charge for ur {item}."),
        Step.CANCEL: ("i canceld ur order.", "ur {item} order is stoped now."),
        Step.LABEL: ("heres a lable to send ur {item} back.", "use teh retrun lable ok."),
        Step.REFUND: ("u get ur money back for teh {item}.", "full refund is comming."),
    },
}

_BY_REGISTER = {
    Register.PLAIN: _PLAIN,
    Register.CURT: _CURT,
    Register.VAGUE: _VAGUE,
    Register.SLOPPY: _SLOPPY,
    Register.RUDE: _RUDE,
}

REPLY_TEMPLATES: tuple[Template, ...] = tuple(
    Template(part, register, text)
    for register, parts in _BY_REGISTER.items()
    for part, texts in parts.items()
    for text in texts
) + tuple(
    Template(Part.STEP, register, text, step)
    for register, steps in _STEPS.items()
    for step, texts in steps.items()
    for text in texts
)

OPENERS = ("Hello!", "Hi!", "Good day!")
COMPLAINTS: dict[Issue, tuple[str, ...]] = {
    Issue.LATE: (
        "My {item} has not arrived.",
        "I am still waiting for my {item}.",
        "The {item} I bought is two weeks late.",
        "Where is my {item}?",
        "The {item} from order {order} never came.",
    ),
    Issue.DAMAGED: (
        "My {item} arrived broken.",
        "The {item} you sent has a big crack.",
        "I opened the box and the {item} was smashed.",
        "My new {item} was damaged on the way.",
        "The {item} from order {order} came in pieces.",
    ),
    Issue.COLOUR: (
        "My {item} came in the wrong colour.",
        "I asked for a blue {item} and got a green one.",
        "The {item} you sent is not the colour I chose.",
        "You sent a red {item} but I ordered a white one.",
        "The {item} from order {order} has the wrong colour.",
    ),
    Issue.PART: (
        "A part of my {item} is missing.",
        "The box of my {item} was not complete.",
        "There is a piece missing from my new {item}.",
        "I cannot use the {item} because one part was not in the box.",
        "The {item} from order {order} came without all its parts.",
    ),
    Issue.CHARGE: (
        "I was charged twice for my {item}.",
        "You took the money for the {item} two times.",
        "My card shows two payments for one {item}.",
        "I paid double for my {item}.",
        "You charged order {order} for the {item} twice.",
    ),
    Issue.CANCEL: (
        "I want to cancel my {item}.",
        "Please cancel the {item} I bought this morning.",
        "I no longer need the {item} and want to cancel.",
        "Can I still cancel my {item}?",
        "Please stop order {order} because I do not want the {item}.",
    ),
}
ORDER_SENTENCES = (
    "My order number is {order}.",
    "Order {order}.",
    "It was order {order}.",
    "The order number is {order}.",
)
REQUESTS = ("What can you do?", "Please help.", "Can you fix this?", "Please answer soon.")
