"""How often an upstream's 401, or a server that doesn't exchange a token, may cause a refresh."""

from collections import OrderedDict

FIRST_AGE_SECONDS = 2.0
LONGEST_AGE_SECONDS = 60.0
LIMIT = 10_000


class Rejections:
    """
    Tells a token that died early from an upstream that refuses every token.

    A token that is refused right after it was issued isn't made better by another one: without this, each call to a
    misconfigured upstream would rotate a refresh token. The age below which a refused token is left alone doubles
    while new tokens keep being refused soon.
    """

    def __init__(self) -> None:
        self._ages: OrderedDict[str, float] = OrderedDict()

    def worth_a_refresh(self, grant_id: str, *, age_seconds: float) -> bool:
        """
        Return whether a token of *grant_id* that was refused at this age should be replaced.

        Another replica's clock may be a little ahead, and its tokens younger than new. A token from farther in the
        future was issued before the clock was set back: nobody knows how old it is.
        """
        age = self._ages.get(grant_id, FIRST_AGE_SECONDS)
        if -LONGEST_AGE_SECONDS < age_seconds < age:
            return False
        if age_seconds < 0 or age_seconds >= 4 * age:
            self._ages.pop(grant_id, None)
            return True
        self._ages[grant_id] = min(2 * age, LONGEST_AGE_SECONDS)
        self._ages.move_to_end(grant_id)
        if len(self._ages) > LIMIT:
            self._ages.popitem(last=False)
        return True
