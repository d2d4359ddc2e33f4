"""Names of instances: what is allowed, and made-up ones.

Owns the hostname rules with Incus' texts and the word lists for `incus launch image` without a name. Pure: the
random generator comes from the caller.
"""

from __future__ import annotations

import random
import re
from collections.abc import Container

from incus_actors.errors import BadRequestError

_HOSTNAME = re.compile(r"[A-Za-z0-9-]*\Z")
_MAX_LENGTH = 63


def hostname_problem(name: str) -> str | None:
    """Return what is wrong with a hostname, in Incus' words, or None."""
    if not 1 <= len(name.encode()) <= _MAX_LENGTH:
        return "Name must be 1-63 characters long"
    if not name.isascii() or not _HOSTNAME.match(name):
        return "Name can only contain alphanumeric and hyphen characters"
    if name.isdigit():
        return "Name cannot be a number"
    if name.startswith("-"):
        return 'Name must not start with "-" character'
    if name.endswith("-"):
        return 'Name must not end with "-" character'
    return None


def check_instance_name(name: str) -> None:
    """Raise BadRequestError with Incus' text when `name` can't be an instance's."""
    if "/" in name:
        raise BadRequestError('Invalid instance name: The character "/" is reserved for snapshots')
    problem = hostname_problem(name)
    if problem:
        raise BadRequestError(f"Invalid instance name: {problem}")


_ADJECTIVES = (  # noqa: SIM905
    "able amused ample apt artistic awake brave bright brisk calm capable careful cheerful chief civil clean clear "
    "clever closing cosmic crisp dear decent direct eager easy elegant enough equal evident exact fair famous "
    "fancy fast fine firm fit fleet fond frank free fresh full funny gentle glad golden good grand grateful great "
    "handy happy hardy helpful holy honest humble ideal intent jolly joyful just keen kind large lasting legal "
    "light liked live logical loved lucky mature mighty model modern modest moral natural neat noble normal novel "
    "open optimal patient pleasant polite popular positive precise premium pretty prime prompt proper proud pure "
    "quick quiet rapid rare ready real refined regular relaxed robust safe settled sharp simple smart smooth solid "
    "sound square stable star steady stirring strong subtle suitable sunny super sure sweet tender thankful top "
    "tops touched true trusty unified united upright useful valid valued verified viable vital warm welcome well "
    "whole willing winning wise worthy"
).split()
_ANIMALS = (  # noqa: SIM905
    "adder ape badger bass bear bee bengal bison boar buck bull bunny camel cat cheetah chow cobra colt "
    "cougar coyote cricket cub deer doberman dog donkey drake duck earwig elephant elk ewe fawn ferret "
    "firefly flamingo flounder fowl frog gar gazelle ghost gibbon glider gnu goblin goose gorilla griffon "
    "grouper grub gull hare hedgehog hermit herring hog hornet hound ibex impala insect jaguar jay joey "
    "katydid kit kitten kodiak krill lacewing lamb lark lemming leopard lion lionfish llama locust lynx macaw "
    "mako mammal man mantis marmoset marten mastiff mayfly midge minnow moccasin mollusk monarch monitor "
    "monkfish moose mosquito mouse mule muskox mustang newt octopus orca oryx ostrich owl oyster pangolin "
    "parakeet peacock pelican perch phoenix pigeon pika piranha polecat pony porpoise prawn pug pup quagga "
    "quetzal raccoon ram rat ray redfish rhino robin rooster sailfish satyr sawfly sculpin seahorse seasnail "
    "shad sheep shepherd shrew silkworm skunk sloth snail snapper sole sparrow sponge squirrel stallion "
    "starling stinkbug stud sunbeam sunfish swift tadpole tapir teal terrapin tetra tick titmouse tomcat "
    "toucan troll tuna turtle urchin viper wahoo walleye warthog weasel werewolf whippet wolf woodcock wren "
    "yeti"
).split()


def petname(rng: random.Random, taken: Container[str] = ()) -> str:
    """Return a name such as "gorgeous-sheepdog" that is not in `taken`; numbered when luck runs out."""
    for _ in range(32):
        name = f"{rng.choice(_ADJECTIVES)}-{rng.choice(_ANIMALS)}"
        if name not in taken:
            return name
    while True:
        name = f"{rng.choice(_ADJECTIVES)}-{rng.choice(_ANIMALS)}-{rng.randrange(1, 100000)}"
        if name not in taken:
            return name
