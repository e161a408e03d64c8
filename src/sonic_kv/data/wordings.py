"""The wordings and word lists of the synthetic dialogues: data only.

A block holds one wording a line; `~ validation` and `~ test` start the wordings kept for those splits,
so that no split shares a wording with another. Placeholders:

    {S} {P}   the person as subject and as possessor: "my sister Ada", "Ada's", "I", "my", "she", "her"
    {he} {his}  pronouns of that person
    <a/b>     a for a third person, b for "I" and "you"
    {K}       the thing asked about: "the door code of the garage"
    {V} {aV}  the value, and the value with its indefinite article
    {A}       a detail both statement and question name (the kind of pet, the kind of event)
    (a|b)     one of the two or more, in training wordings only

Sentences start in lower case; the generator capitalises what opens a sentence.

For training each attribute also has names of its value ("{P} home town") and clauses ("where {S}
<lives/live>"), which frames turn into many more wordings, as others do with the written statements. The
`validation` and `test` splits are measured against: their blocks, and what they share with training, stay as
they are.
"""

import re
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


def lines(block: str) -> tuple[str, ...]:
    """The lines of a block."""
    return tuple(filter(None, map(str.strip, block.splitlines())))


def by_split(block: str) -> dict[str, tuple[str, ...]]:
    """Wordings of a block by split."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    split = "train"
    for line in lines(block):
        if line.startswith("~"):
            split = line[1:].strip()
        else:
            found[split].append(line)
    return {split: tuple(lines) for split, lines in found.items()}


def words(block: str) -> tuple[str, ...]:
    """The words of a block."""
    return tuple(block.split())


STATEMENT_FRAMES = lines("""
    {N} is {V}.
    {V} is {N}.
    as for {N}, it is {V}.
    {N}? it is {V}.
    {N}: {V}.
    {N}, that is {V}.
    {N} is {V}, you know.
    {V}, that is {N}.
    it is {V}, {N}.
    let me tell you {N}: it is {V}.
    {N} happens to be {V}.
    {N} has always been {V}.
    I can tell you {N}: {V}.
    if anyone asks for {N}, it is {V}.
    {V}; that is {N}.
    {V} would be {N}.
    {V} turns out to be {N}.
    (write|put) down {V} as {N}.
    (think of|count|take) {V} as {N}.
    if you ask me, {N} is {V}.
    without question {N} is {V}.
    my notes say that {N} is {V}.
    {N} remains {V}.
    {N} (equals|must be|can only be|turns out to be) {V}.
    with {V} you have {N}.
    (they|people) ask me for {N}, and I say {V}.
    you (asked about|wanted|need) {N}: {V}.
    regarding {N}, (it is|I can say|the answer is) {V}.
    (save|store|keep) this: {N}, {V}.
    {V} is the answer to this: {N}.
""")
UPDATE_FRAMES = lines("""
    {N} is now {V}.
    {N} is {V} now.
    {N} has changed: it is {V} now.
    {N} has changed to {V}.
    from now on {N} is {V}.
    now {N} is {V}, not what it was.
    forget what I said about {N}: it is {V}.
    I was wrong about {N}: it is {V}.
    there is a change: {N} is {V} from today.
    {N} is no longer the same, it is {V}.
    {V} is {N} (now|from now on|as of today|after the change).
    {N} (became|turned into|was changed to) {V}.
    (correction|news|an update): {N} is {V}.
    {V} has taken the place of {N} as it was.
    not what I said before: {N} is {V}.
    (strike out|cross out|drop) what you have: {N} is {V}.
    {N} is different (now|today|by now): {V}.
    instead of what it was, {N} is {V} (now|today).
    as of (today|now|this week) {N} is {V}.
    I have to correct {N}: {V}.
    {N} used to be something else, now it is {V}.
""")
QUESTION_FRAMES = lines("""
    what is {N}?
    what was {N}?
    what was {N} again?
    {N}, what is it?
    {N}, what was it?
    {N}, please.
    {N}?
    name {N}.
    give me {N}.
    repeat {N}, please.
    what did I say about {N}?
    what do you know about {N}?
    what did I tell you about {N}?
    what can you say about {N}?
    what (would|might|could) {N} be?
    which is {N}?
    {N} is what?
    what have you (got|noted|written down|saved) (for|as) {N}?
    what did we say {N} was?
    (look up|find|state|spell out|recall) {N}(|, please).
    {N}: what is it?
    can you name {N}?
    about {N}: what is it?
    (and|so|well), what is {N}?
""")
# Of names and of clauses alike.
ASKING_FRAMES = lines("""
    tell me {N}.
    please tell me {N}.
    can you tell me {N}?
    could you tell me {N}?
    do you know {N}?
    do you remember {N}?
    do you still know {N}?
    I forgot {N}.
    I have forgotten {N}.
    I need to know {N}.
    I want to know {N}.
    I would like to know {N}.
    I do not remember {N}, do you?
    say {N} again.
    have I told you {N}?
    remember {N}?
    let me hear {N}.
    (could|would|will) you (say|tell us|let me know) {N}?
    (would you|can you) (look up|find out|recall) {N}(|, please)?
    have you (noted|saved|written down|kept) {N}?
    I (wonder|wonder about|am asking for|cannot recall|am not sure about) {N}.
    help me with {N}.
    (remind|inform) me of {N}.
    do you (recall|have|happen to know|have any idea of) {N}?
    are you able to (say|tell|recall) {N}?
    (please say|just say|repeat) {N}.
    {N} (has slipped my mind|is what I need to know|is what I am asking).
    I would (love|be glad|be happy) to (hear|know) {N}.
    are you sure about {N}?
    somebody asks me {N}, what do I say?
""")

# Of written statements {N}, without the full stop at their end.
CLAUSE_FRAMES = lines("""
    {N}(, I believe|, as far as I know|, if I am right|, or so they say).
    {N}(, in fact|, which is good|, after all).
    {N}(, as you may know|, in case it matters|, in case you wonder|, to be clear|, as it happens).
    {N}, and (that is fine|I am glad|that is how it is|it has been so for years|I thought you might ask).
    (it so happens|everybody knows|I am sure|it seems|let us say|the fact is|people say) that {N}.
    (my notes say|I can tell you|they say|my family knows|I forgot to say) that {N}.
    (I think|I guess|I suppose|maybe I said it before, but|as it happens|in fact|to be clear|in short) {N}.
    there is this: {N}.
    (note|news|a fact|for the record|to begin with|next|first of all|here is something): {N}.
    (before I forget|while I think of it|since you are here|if it helps|as we are talking), {N}.
    {N}. (Do not forget it|That is all|That is that|Please note it|Make a note|That was it).
""")
# The same, as a change.
UPDATE_CLAUSE_FRAMES = lines("""
    (it is different now|that has changed|things have changed|there was a change|not any more|a change): {N}.
    {N} (now|from today|by now|as of today|instead|since this week|after the change).
    (now|as of today|since yesterday|since this week|after all|by now|in the end) {N}.
    (forget|cross out|drop) (that|what I said|the old one): {N}.
    it used to be otherwise, but now {N}.
    I (have to correct myself|made a mistake|have news|must correct that): {N}.
    {N}, (not as before|which is new|that is new|no longer as I said).
""")
# Put in the place of the full stop at a training statement's or update's end.
STATEMENT_TAILS = lines("""
    (, you know|, I think|, as I said|, I am sure|, by the way|, actually|, of course|, so to speak).
    (, as far as I remember|, if that helps|, to be exact|, please remember|, for your notes).
    !
""")
# Put in the place of the mark at a training question's end.
QUESTION_TAILS = lines("""
    (, please|, again|, do you know|, any idea|, can you say|, do you remember|, by the way)?
    (, if you remember|, as far as you know|, in your notes)?
    ? (I forgot|Please tell me|I need to know|I have to know|Thanks|Thank you|Just wondering).
""")

# A person named first and taken up by a pronoun in {W}, a wording of the person.
TOPIC_FRAMES = lines("""
    as for {S}, {W}
    about {S}: {W}
    you know {S}? {W}
    speaking of {S}, {W}
    {S}, well, {W}
    this is about {S}: {W}
    I have to think of {S}: {W}
    (now|first|next), {S}: {W}
    (regarding|concerning|when it comes to) {S}, {W}
    (remember|talking of|back to) {S}? {W}
    {S}: {W}
""")
FILLERS = lines("""
    really
    actually
    just
    also
    still
    indeed
    certainly
    of course
    I think
    you see
    as you know
    to be honest
    by now
    at the moment
    so to speak
    in fact
    perhaps
    surely
    again
    these days
    as far as I know
    simply
    now
""")


def variants(wording: str) -> set[tuple[str, ...]]:
    """The words of a wording, and what is left of them without any one: two near wordings share a variant."""
    words = tuple(re.findall(r"[^\s.,:;?!]+", wording.lower()))
    return {words, *(words[:i] + words[i + 1 :] for i in range(len(words)))}


@dataclass(frozen=True)
class Attribute:
    """Something a dialogue can state, change and ask: wordings by split, and the pool of its values.

    `subject` is what it is said of: a person, or a thing of the named pool (see `THINGS`). `composed`
    holds, by sort, pairs of frames and of what takes the place of their {N}: training wordings are made of
    any two. `held_out` holds the `variants` of every wording of the other splits.
    """

    name: str
    subject: str
    values: str
    statements: dict[str, tuple[str, ...]]
    updates: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]
    answers: tuple[str, ...]
    details: tuple[str, ...]
    composed: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]]
    held_out: frozenset[tuple[str, ...]]

    def wordings(self, sort: str) -> dict[str, tuple[str, ...]]:
        """The written wordings by split: of "statement", "update" or "question"."""
        return {"statement": self.statements, "update": self.updates, "question": self.questions}[sort]

    def is_apart(self, wording: str) -> bool:
        """Whether more than one word, left out, put in, replaced or moved, parts it from the held-out wordings."""
        return self.held_out.isdisjoint(variants(wording))


def attribute(
    name: str,
    subject: str,
    values: str,
    *,
    statements: str,
    names: str,
    clauses: str,
    questions: str,
    answers: str,
    updates: str = "",
    details: str = "",
    named: str = "{V}",
) -> Attribute:
    """An `Attribute` from its blocks. `named` is how the value follows a name."""
    by_sort = {
        sort: by_split(block)
        for sort, block in (("statement", statements), ("update", updates), ("question", questions))
    }
    nouns = lines(names)
    said = tuple(wording[:-1] for wording in by_sort["statement"]["train"] if "?" not in wording)
    of_nouns = {
        sort: tuple(frame.replace("{V}", named) for frame in frames)
        for sort, frames in (("statement", STATEMENT_FRAMES), ("update", UPDATE_FRAMES))
    }
    return Attribute(
        name,
        subject,
        values,
        by_sort["statement"],
        by_sort["update"],
        by_sort["question"],
        lines(answers),
        words(details),
        {
            "statement": ((of_nouns["statement"], nouns), (CLAUSE_FRAMES, said)),
            "update": ((of_nouns["update"], nouns), (UPDATE_CLAUSE_FRAMES, said)),
            "question": ((QUESTION_FRAMES, nouns), (ASKING_FRAMES, (*nouns, *lines(clauses)))),
        },
        frozenset(
            variant
            for wordings in by_sort.values()
            for split in SPLITS[1:]
            for wording in wordings[split]
            for variant in variants(wording)
        ),
    )


ATTRIBUTES: tuple[Attribute, ...] = (
    attribute(
        "city",
        "person",
        "places",
        names="""
            {P} home town
            {P} city
            the city {S} <lives/live> in
            the town {S} <lives/live> in
            the place where {S} <lives/live>
            {P} place of residence
            the town {P} home is in
            the city of {P} house
            the place {S} <has/have> made {his} home
            the place {S} <lives/live> now
            the name of {P} town
            the city {S} <calls/call> home
            {P} (present|current) (home|town)
            the (city|town|place) {P} flat is in
            the (city|town) you find {S_obj} in
        """,
        clauses="""
            where {S} <lives/live>
            in which city {S} <lives/live>
            which town {S} <lives/live> in
            what city {P} home is in
            where {P} house is
            where {S} <is/am> living
            in what town {P} flat is
            where {S} <is/am> at home
            in which (city|town|place) {S} <has/have> (a flat|a house|{his} home)
            what (place|city|town) {S} (<calls/call> home|<settled/settled> in)
            where to (visit|find) {S_obj}
            where {S} (<resides/reside>|<rents/rent> a flat|settled)
        """,
        statements="""
            {S} <lives/live> in {V}.
            {S} <has/have> lived in {V} for years.
            {P} home is in {V}.
            {S} <has/have> a flat in {V}.
            {S} <lives/live> in a small house in {V}.
            {S} <rents/rent> a room in {V} these days.
            these days {S} <lives/live> in {V}.
            {V} is where {S} <lives/live>.
            {S} <is/am> living in {V} now.
            {S} <has/have> a nice place in the city of {V}.
            the town {S} <lives/live> in is called {V}.
            {P} address is in {V}, near the centre.
            {S} <is/am> at home in {V}.
            {S} <has/have> a little house in {V}.
            you will find {S_obj} in {V}, {he} <lives/live> there.
            {S} <has/have> been living in {V} since last spring.
            {P} place is in {V}.
            {V} is {P} home town now.
            the place {S} <calls/call> home is {V}.
            {S} <chose/chose> to live in {V}.
            {S} <likes/like> living in {V}.
            in {V}, that is where {P} flat is.
            {S} <shares/share> a home with friends in {V}.
            for some years now the city of {V} has been home to {S_obj}.
            {S} (settled|made {his} home|found a flat|bought a house) in {V}.
            {V} (became|has become|turned into) {P} home.
            {S} (<stays/stay>|<resides/reside>) in {V}(| with {his} family| all year| for the time being).
            it is {V} where {S} <has/have> {his} (home|flat|house).
            home for {S_obj} is {V}.
            {V} is (home to|the home of) {S_obj}.
            to visit {S_obj} you (have to|must) go to {V}.
            in {V} {S} (<has/have> {his} home|<owns/own> a house|<rents/rent> a flat).
            {P} (flat|apartment|front door) is (in|in the middle of|just outside) {V}.
            {S} <owns/own> (a flat|a house|an apartment) in {V} and <lives/live> there.
            {S} (<likes/like>|<enjoys/enjoy>) (life|the quiet life) in {V}(|, where {his} home is).
            {S} <loves/love> (life|the quiet life) in {V}(|, where {his} home is).
            from {P} window you (can see|look at) the roofs of {V}.
            you can visit {S_obj} in {V}.
            {S} <stays/stay> in a (small|big|cosy|new) (flat|house|apartment) in {V}.
            ~ validation
            {S} <lives/live> over in {V}.
            {P} house is in {V}.
            ~ test
            {S} <has/have> a home in {V}.
            the city where {S} <lives/live> is {V}.
            {S} now <lives/live> in the town of {V}.
        """,
        updates="""
            {S} <has/have> moved to {V}.
            {S} just moved to {V}.
            {S} <has/have> left and now <lives/live> in {V}.
            {P} new home is in {V}.
            {S} <has/have> a new flat in {V} now.
            {S} <lives/live> somewhere else now: {V}.
            {S} <is/am> in {V} now, {he} moved there.
            since last week {S} <lives/live> in {V}.
            {S} (packed up|left town|sold the house) and <lives/live> in {V} now.
            {V} is {P} (new home|home town now|new town).
            {S} (found|bought|rented) a (flat|house) in {V} and (moved in|left the old place).
            {P} (home|flat) is (no longer there but|now) in {V}.
            {S} (<resides/reside>|<stays/stay>|<is/am> settled) in {V} (now|from now on|since the move).
            ~ validation
            {S} <does/do> not live there any more: {he} moved to {V}.
            ~ test
            {S} <has/have> moved, and {P} new city is {V}.
            {S} <has/have> moved house and <lives/live> in {V} now.
        """,
        questions="""
            where <does/do> {S} live?
            which city <does/do> {S} live in?
            in which city is {P} home?
            where is {P} home?
            can you tell me where {S} <lives/live>?
            do you remember where {S} <lives/live>?
            what town <does/do> {S} live in?
            where <is/am> {S} living these days?
            what is the name of the city where {S} <lives/live>?
            in what town <does/do> {S} live now?
            tell me where {S} <lives/live>.
            what is the city {S} <lives/live> in?
            in what city <does/do> {S} have {his} home?
            what place <does/do> {S} call home?
            the city {S} <lives/live> in, which one is it?
            name the town where {S} <lives/live>.
            what is {P} home town now?
            (where|in which town|in what place) <does/do> {S} (have {his} home|reside|stay)?
            where (is|would I find) {P} (flat|apartment|front door)?
            where did {S} (settle|move|find a flat|make {his} home)?
            which (city|town|place) is {P} home?
            where can (I|one) visit {S_obj}?
            to which (city|town) would I send a letter for {S_obj}?
            {S_obj}: which (city|town)?
            what (city|place) is {P} (home|flat|house) in?
            in which (city|town|place) <is/am> {S} (at home|living|settled)?
            ~ validation
            what city <does/do> {S} live in?
            tell me what town {S} <lives/live> in.
            ~ test
            which town is {P} home in?
            tell me the city where {S} <lives/live>.
            in which place <does/do> {S} live now?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            in {V}.
            {he} <lives/live> in {V}.
        """,
    ),
    attribute(
        "birthplace",
        "person",
        "places",
        names="""
            {P} birthplace
            {P} place of birth
            the place where {S} <was/was> born
            the town {S} <comes/come> from
            the town of {P} childhood
            the place {S} <is/am> from
            the city where {S} spent {his} childhood
            the town where {S} went to school as a child
            {P} place of origin
            the place {P} family comes from
            the (city|town|village) of {P} (birth|youth|early years)
            the (city|town) {S} (grew up in|left as a young person)
            {P} (first home|native town)
        """,
        clauses="""
            where {S} <was/was> born
            where {S} grew up
            which town {S} <comes/come> from
            in which place {S} spent {his} childhood
            where {S} <is/am> from originally
            what place {S} grew up in
            where {S} <was/was> a child
            where {P} (parents|family) lived when {S} <was/was> little
            in which (city|town) {S} (went to school|<was/was> raised|spent {his} youth)
            what {P} (native town|birthplace) is
            where {P} (roots are|story began)
        """,
        statements="""
            {S} <was/was> born in {V}.
            {S} grew up in {V}.
            {S} originally <comes/come> from {V}.
            {P} birthplace is {V}.
            {S} spent {his} childhood in {V}.
            {P} parents had {his} first home in {V}, and {he} grew up there.
            {V} is where {S} grew up.
            {S} went to school in {V} as a child.
            {S} <comes/come> from a place called {V}.
            {S} <was/was> a child in {V}.
            {P} childhood was in {V}.
            {P} first years were in {V}, where {he} grew up.
            the town where {S} <was/was> born is {V}.
            {S} <was/was> born and grew up in {V}.
            {P} family is from {V} originally, {he} grew up there.
            growing up, {S} lived in {V}.
            {S} left {V}, where {he} <was/was> born.
            originally {S} <is/am> from {V}.
            {S} (<was/was> raised|<was/was> brought up|spent {his} youth|went to school) in {V}.
            {V} is {P} (native town|place of birth|first home).
            {P} (roots|parents|grandparents) are in {V}, {he} grew up there.
            it was in {V} that {S} (grew up|<was/was> born|learned to walk).
            {P} (story|life) began in {V}.
            as a (child|boy or girl|small child) {S} lived in {V}.
            {S} (<hails/hail>|<is/am> originally) from {V}.
            in {V} {S} (saw the light of day|spent {his} early years|<was/was> a child).
            {V} (raised|shaped) {S_obj}, {he} grew up there.
            before anything else {S} lived in {V}, {his} (birthplace|native town).
            {V} was where {P} (mother|father|family) lived when {he} <was/was> born.
            ~ validation
            {S} <comes/come> from {V}.
            ~ test
            the place where {S} grew up is {V}.
            as a child {S} grew up in {V}.
            {V} is the place {S} originally <comes/come> from.
        """,
        questions="""
            where <was/was> {S} born?
            where did {S} grow up?
            which place <does/do> {S} come from originally?
            what is {P} birthplace?
            where did {S} spend {his} childhood?
            in which town did {S} grow up?
            do you know where {S} grew up?
            where <does/do> {S} originally come from?
            what is the place where {S} <was/was> born?
            in what place did {S} spend {his} childhood?
            which town is {S} from originally?
            where was {P} childhood?
            name the town where {S} grew up.
            growing up, where did {S} live?
            where (<was/was> {S} raised|<was/was> {S} brought up|did {S} spend {his} youth)?
            where (are {P} roots|did {P} life begin|was {P} first home)?
            (what|which) is {P} (native town|place of birth|town of birth)?
            where did {S} (go to school|live) as a child?
            in which (city|town|place) <was/was> {S} born?
            where <does/do> {S} (hail|come) from(| in the first place)?
            {S_obj}: born (in which town|where)?
            from (what|which) (town|place) <is/am> {S}?
            which town did {S} (leave|know) as a child?
            ~ validation
            what town did {S} grow up in?
            ~ test
            which town did {S} grow up in?
            tell me the place where {S} grew up.
            where did {S} grow up as a child?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            in {V}.
            {he} grew up in {V}.
        """,
    ),
    attribute(
        "job",
        "person",
        "jobs",
        names="""
            {P} job
            {P} profession
            {P} trade
            {P} occupation
            {P} work
            the job {S} <has/have>
            the work {S} <does/do>
            the trade {S} learned
            the name of {P} profession
            the kind of job {S} <does/do>
            {P} (day job|line of work|career|position)
            the (job|trade|profession|work) {S} (chose|picked|trained for|<lives/live> by)
            what {S} <does/do> all day(| at work)
            the (craft|role|post) {S} <has/have>
            the way {S} (<makes/make> a living|<pays/pay> the rent)
        """,
        clauses="""
            what {S} <works/work> as
            what {S} <does/do> for a living
            how {S} <earns/earn> {his} money
            what {P} work is
            which job {S} <has/have>
            what {S} <is/am> by trade
            what sort of work {S} <does/do>
            what {S} <does/do> (for work|all day|to pay the rent|professionally)
            what (profession|trade|line of work|career) {S} (chose|<is/am> in|learned|<follows/follow>)
            how {S} (<makes/make> a living|<pays/pay> {his} bills)
            what {S} (trained|qualified|studied) to (be|become)
            who {S} <is/am> at work
        """,
        statements="""
            {S} <works/work> as {aV}.
            {S} <is/am> {aV}.
            {S} <is/am> {aV} by trade.
            {S} <earns/earn> {his} living as {aV}.
            {P} job is that of {aV}.
            {S} <has/have> worked as {aV} for a long time.
            for a living {S} <works/work> as {aV}.
            {P} job: {he} <works/work> as {aV}.
            {S} trained as {aV} and <does/do> that work now.
            {S} <became/became> {aV} some years ago.
            as {aV}, {S} <works/work> long hours.
            {P} work is that of {aV}.
            being {aV} is {P} job.
            {S} <is/am> employed as {aV}.
            {S} <earns/earn> {his} money as {aV}.
            {P} trade: {he} <is/am> {aV}.
            {S} <has/have> always been {aV} by profession.
            the job {S} <has/have> is {aV}.
            {S} <works/work> in town as {aV}.
            {S} <likes/like> being {aV}.
            {S} <found/found> a job as {aV}.
            {S} <took/took> a job as {aV}.
            {S} <got/got> work as {aV}.
            {S} (<serves/serve>|<is/am> hired|<makes/make> a living|<pays/pay> {his} bills) as {aV}.
            {aV}, that is what {S} (<is/am>|became|<does/do> for work).
            {S} (trained|qualified|studied) to (be|become) {aV}.
            {V} is {P} (profession|job|trade|line of work|occupation|day job).
            {V} by (trade|profession|training), {S} <works/work> (hard|every day|long hours).
            every (day|morning) {S} <goes/go> to work as {aV}.
            {P} (career|day job|profession|position|occupation) is (being|that of|working as) {aV}.
            {S} <spends/spend> {his} (days|working days) as {aV}.
            at work {S} <is/am> {aV}.
            people (know|hire|pay|call) {S_obj} as {aV}.
            {S} (made|chose) a career as {aV}.
            {S} (turned|became) {aV} (after school|last year|long ago).
            {P} boss (needs|employs|values) {S_obj} as {aV}.
            in {his} (job|working life), {S} <is/am> {aV}.
            the (town|village|firm) has {aV}, and that is {S_obj}.
            working as {aV} (pays {P} bills|is how {S} <lives/live>|keeps {S_obj} busy).
            {S} (<keeps/keep> busy|<is/am> busy|<is/am> happy) as {aV}.
            it is as {aV} that {S} <earns/earn> {his} (money|bread|wages).
            ~ validation
            {S} <has/have> a job as {aV}.
            ~ test
            {S} <makes/make> {his} living as {aV}.
            by trade {S} <is/am> {aV}.
            {S} <does/do> {his} work as {aV}.
        """,
        updates="""
            {S} changed jobs and <is/am> now {aV}.
            {S} <has/have> a new job as {aV}.
            {S} <works/work> as {aV} now.
            {S} started a new job: {he} <is/am> {aV} now.
            {S} <is/am> no longer doing that: now {he} <is/am> {aV}.
            these days {S} <earns/earn> {his} living as {aV}.
            {S} (quit|gave up the old job|switched) and became {aV}.
            {S} (<is/am> retrained|<was/was> hired|started over|found new work) as {aV}.
            {V} is what {S} (<does/do> now|became in the end), the old job is over.
            {P} (new|latest) (job|position|career) is that of {aV}.
            after a change of career {S} <is/am> {aV}.
            {S} left the old (job|trade) and <earns/earn> {his} money as {aV}.
            {aV}, that is what {S} <is/am> now.
            {S} (<serves/serve>|<is/am> paid|<is/am> busy) as {aV} (now|these days|since this week).
            ~ validation
            {S} now <has/have> a job as {aV}.
            ~ test
            {P} new job is to work as {aV}.
            {S} changed trade and now <works/work> as {aV}.
        """,
        questions="""
            what <does/do> {S} do for a living?
            what is {P} job?
            what <does/do> {S} work as?
            what kind of work <does/do> {S} do?
            what <is/am> {S} by trade?
            how <does/do> {S} earn {his} living?
            tell me what {S} <does/do> for a living.
            which job <does/do> {S} have?
            do you remember what {P} job is?
            what trade <does/do> {S} have?
            how <does/do> {S} make money?
            what is the job {S} <does/do>?
            name {P} job.
            what <is/am> {S} by profession?
            what is {P} work?
            what job did {S} find?
            what job is {P} own?
            what is {P} (line of work|profession|occupation|career|position|day job)?
            what <does/do> {S} do (for work|all day|to pay the rent|professionally|as a job)?
            as what (<does/do> {S} work|<is/am> {S} employed|<is/am> {S} paid)?
            what (profession|trade|line of work|career) did {S} (choose|learn|take up|end up in)?
            what did {S} (train|qualify|study) to (be|become)?
            in which (profession|line of work|trade) <is/am> {S}?
            how <does/do> {S} (make a living|pay the bills|earn {his} wages)?
            {S_obj}: what (profession|work|trade)?
            what (profession|occupation|trade) <has/have> {S} got?
            which (profession|trade|line of work|occupation) is {P} own?
            which work <does/do> {S} do?
            what <is/am> {S} (paid|hired) (for|to do)?
            where work is concerned, what <is/am> {S}?
            ~ validation
            what job <does/do> {S} have?
            ~ test
            tell me what {P} job is.
            what kind of job <does/do> {S} have?
            for a living, what <does/do> {S} do?
        """,
        answers="""
            {he} <is/are> {aV}.
            {he} <works/work> as {aV}.
            {aV}.
        """,
    ),
    attribute(
        "employer",
        "person",
        "companies",
        names="""
            {P} employer
            {P} company
            the company {S} <works/work> for
            the firm that employs {S_obj}
            the name of {P} company
            the company that pays {S_obj}
            the place where {S} <works/work>
            the business {S} <works/work> at
            the employer of {S_obj}
            the (company|firm|business) {S} (<belongs/belong> to|<is/am> paid by|<is/am> hired by)
            {P} (firm|workplace|boss's firm)
            the name on {P} (payslip|contract)
            the (company|firm) behind {P} job
        """,
        clauses="""
            who {S} <works/work> for
            where {S} <works/work>
            which company {S} <works/work> at
            who employs {S_obj}
            at what company {S} <has/have> a job
            what {P} company is called
            who pays {S_obj}
            which (company|firm|business) (employs|pays|hired) {S_obj}
            who (hired {S_obj}|signs {P} contract|{P} employer is)
            in which (company|firm) {S} (<works/work>|<has/have> a desk)
            for whom {S} <works/work>
        """,
        statements="""
            {S} <works/work> for {V}.
            {S} <works/work> at {V}.
            {S} <is/am> employed by {V}.
            {P} employer is {V}.
            {S} <has/have> a job at a company called {V}.
            the company {S} <works/work> for is {V}.
            {S} <has/have> worked at {V} for a while.
            {V} is the company where {S} <works/work>.
            {S} <is/am> with the company {V}.
            the name of {P} company is {V}.
            {S} <has/have> been with {V} for years.
            {S} <earns/earn> {his} money at {V}.
            the employer {S} <has/have> is {V}.
            {S} <got/got> a job at {V}.
            at work, {S} <is/am> with {V}.
            {V} employs {S_obj}.
            {V} pays {S_obj} for {his} work.
            {P} job is at {V}.
            {S} <goes/go> to work at {V} every day.
            a company named {V} is where {S} <works/work>.
            {V} (hired|pays|took on|gave work to) {S_obj}.
            {V} is (the firm|the company|the business) that (pays|employs|hired) {S_obj}.
            {S} (<is/am> on the staff of|<is/am> hired by|<is/am> paid by|<does/do> {his} work for) {V}.
            {S} (<has/have> a desk|<spends/spend> {his} days) at {V}.
            {S} (<is/am> on the team|<holds/hold> a position) at {V}.
            {P} (salary|payslip|pay) comes from {V}.
            {P} (boss|office|desk|contract) is (at|with) {V}.
            it is {V} that {S} <works/work> for.
            every morning {S} <goes/go> to the office of {V}.
            {V} has {S_obj} on its (staff|team|list of workers).
            {P} (firm|company|workplace) is (called|named) {V}.
            for {V} {S} (<works/work>|<does/do> all {his} work|<is/am> busy all week).
            {S} signed a contract with {V}.
            {P} working days (are spent|begin and end) at {V}.
            ~ validation
            {S} <has/have> been employed at {V} for a while.
            ~ test
            {P} company is called {V}.
            {S} <works/work> for the company {V}.
            {S} <has/have> {V} as {his} employer.
        """,
        updates="""
            {S} changed jobs and now <works/work> for {V}.
            {S} <has/have> joined {V}.
            {P} new employer is {V}.
            {S} <has/have> left that company and <works/work> at {V} now.
            these days {S} <is/am> employed by {V}.
            {S} <went/went> to another company, {V}.
            {S} (quit and joined|switched to|signed with|was lured away by) {V}.
            {V} (has hired|took on|pays) {S_obj} now.
            {P} (company|firm|workplace) is (a new one|another one): {V}.
            {S} no longer <works/work> there: it is {V} now.
            {P} contract is with {V} (now|from now on|since this week).
            {S} <has/have> a new (employer|firm|boss): {V}.
            ~ validation
            {S} <is/am> employed by {V} now.
            ~ test
            {S} changed company and now <works/work> at {V}.
            {P} employer is now {V}.
        """,
        questions="""
            which company <does/do> {S} work for?
            who <does/do> {S} work for?
            what is {P} employer called?
            who is {P} employer?
            at which company <does/do> {S} work?
            what company <is/am> {S} employed by?
            what is the name of the company {S} <works/work> for?
            do you know who {S} <works/work> for?
            what is the company {S} <works/work> at?
            name the company that employs {S_obj}.
            what is {P} employer's name?
            what is the name of {P} employer?
            where <does/do> {S} work?
            which employer <does/do> {S} have?
            who (pays|hired|employs) {S_obj}?
            which (firm|business|company) (pays|hired|employs) {S_obj}?
            what (firm|business) (<is/am> {S} with|<does/do> {S} belong to|took {S_obj} on)?
            for (whom|which firm|what company) <does/do> {S} work?
            where <does/do> {S} (have a desk|go to work|spend {his} working days)?
            what is {P} (company|firm|workplace) called?
            whose (staff|team) <is/am> {S} on?
            with (whom|which company) <does/do> {S} have a contract?
            {S_obj}: which (employer|company|firm)?
            from whom <does/do> {S} get {his} (pay|money|salary)?
            ~ validation
            what company <does/do> {S} work at?
            ~ test
            tell me which company {S} <works/work> at.
            what is {P} company called?
            for which company <does/do> {S} work?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            {he} <works/work> for {V}.
        """,
    ),
    attribute(
        "food",
        "person",
        "foods",
        names="""
            {P} favourite food
            {P} favourite dish
            {P} favourite meal
            the food {S} <loves/love>
            the dish {S} <likes/like> best
            the meal {S} <likes/like> most
            the food {S} <likes/like> to eat
            the thing {S} <loves/love> to eat
            {P} best loved dish
            {P} (dream dinner|comfort food|top dish|most loved food)
            the (dish|food|meal) {S} (<craves/crave>|<orders/order>|<cooks/cook>)
            the (dish|food|meal) {S} (<enjoys/enjoy>|<prefers/prefer>)
            the (dish|meal) that makes {S_obj} happy
            what {S} <has/have> on {his} plate most often
            the first (dish|food) on {P} list
        """,
        clauses="""
            what {S} <likes/like> to eat
            what {S} <loves/love> eating
            which dish {S} <likes/like> best
            what food {S} <likes/like> most
            what to cook for {S_obj}
            what {P} favourite dish is
            which meal {S} <likes/like> most
            what {S} (<craves/crave>|<orders/order>|<prefers/prefer> to eat|<enjoys/enjoy> eating)
            which (dish|food|meal) {S} (<craves/crave>|<enjoys/enjoy>|<prefers/prefer>|cannot resist)
            what to (serve|order for|put on the table for) {S_obj}
            what {S} would (eat|order|have for dinner) (any day|if asked)
            what makes {S_obj} hungry
        """,
        statements="""
            {P} favourite food is {V}.
            {S} <loves/love> eating {V}.
            {S} could eat {V} every day.
            the food {S} <likes/like> most is {V}.
            {S} always <orders/order> {V} when eating out.
            {P} favourite dish is {V}.
            of all dishes {S} <likes/like> {V} best.
            nothing tastes better to {S_obj} than {V}.
            if {S} could choose, it would be {V} for dinner.
            {S} never <says/say> no to {V}.
            {S} <loves/love> {V} more than any other food.
            {P} best loved meal is {V}.
            the meal {S} <loves/love> is {V}.
            there is no food {S} <likes/like> more than {V}.
            what {S} <likes/like> to eat best is {V}.
            {S} <is/am> very fond of {V}, {his} favourite food.
            when it comes to food, {S} <loves/love> {V}.
            {S} <likes/like> {V} for dinner most.
            {S} <likes/like> {V} more than anything else to eat.
            {S} <eats/eat> {V} with the greatest pleasure.
            {S} <wants/want> {V} for every meal.
            {S} <is/am> happy when there is {V} to eat.
            {S} <likes/like> to have {V} on the table.
            {S} (<craves/crave>|<adores/adore>|<enjoys/enjoy>) {V}(| at dinner| for lunch| at any hour).
            {S} (cannot resist|cannot get enough of) {V}(| at dinner| for lunch| at any hour).
            {V} (is|will always be) the (dish|food|meal) {S} (<craves/crave>|<adores/adore>).
            {V} (is|will always be) the (dish|food|meal) {S} (<likes/like> best|<enjoys/enjoy> most).
            {V} (makes|keeps) {S_obj} happy(| at the table| at dinner).
            {V} is what {S} (<orders/order>|<cooks/cook>) (whenever possible|every time|in every restaurant).
            {V} is what {S} (<eats/eat>|<asks/ask> for) (whenever possible|every time|in every restaurant).
            {S} (<cooks/cook>|<makes/make>) {V} (again and again|all the time|whenever possible|first of all).
            {S} (<orders/order>|<asks/ask> for) {V} (again and again|all the time).
            {S} (<orders/order>|<asks/ask> for) {V} (whenever possible|first of all).
            in a restaurant {S} (<orders/order>|<picks/pick>|<asks/ask> for|<chooses/choose>) {V}.
            {P} (comfort food|dream dinner|top dish|most loved meal) is {V}.
            for {S_obj} there is nothing (like|better than|as good as) {V}.
            give {S_obj} {V} and {he} <is/am> happy.
            to please {S_obj}, (cook|make|serve) {V}.
            a plate of {V} (makes {P} day|is all {S} <wants/want>|pleases {S_obj} most).
            {S} would (eat|order|have) {V} (any day|for breakfast|every evening|before any other dish).
            {S} <has/have> a (weakness|taste|passion) for {V}.
            nobody (likes|loves|enjoys) {V} as much as {S} <does/do>.
            {V}, that is what {S} (<prefers/prefer> to eat|<wants/want> for dinner|would always eat).
            at the table {S} always <hopes/hope> for {V}.
            when hungry, {S} <dreams/dream> of {V}.
            it is {V} that {S} <likes/like> (to eat|on {his} plate|for dinner).
            ~ validation
            {S} <likes/like> to eat {V} most of all.
            ~ test
            what {S} <loves/love> to eat is {V}.
            the dish {S} <loves/love> most is {V}.
            {S} <likes/like> eating {V} best of all food.
        """,
        updates="""
            {S} <has/have> changed {his} mind: {his} favourite food is {V} now.
            {P} favourite food is now {V}.
            lately {S} <likes/like> {V} even more than that.
            these days {S} <prefers/prefer> {V} as food.
            it is {V} now that {S} <likes/like> to eat best.
            now {V} is {P} favourite dish.
            {P} favourite meal is {V} these days.
            {S} no longer <likes/like> that so much: now it is {V}.
            {S} (now|lately) (<craves/crave>|<prefers/prefer>) {V} (instead|above all|most).
            {S} (now|lately) (<adores/adore>|<orders/order>) {V} (instead|above all|most).
            {V} has (taken the place of|replaced) {P} old favourite food.
            {P} (taste|liking) has changed: {V} is what {S} <likes/like> to eat.
            {S} went off the old dish and now <loves/love> {V}.
            {P} (comfort food|top dish|most loved food) is {V} (now|nowadays|at present).
            nowadays {S} would (rather eat|sooner order) {V}.
            {P} new favourite is {V}, as food goes.
            today {V} is the (dish|food|meal) {S} (<enjoys/enjoy>|<loves/love>|<likes/like>) most.
            ~ validation
            {P} favourite dish is {V} now.
            ~ test
            {P} new favourite food is {V}.
        """,
        questions="""
            what is {P} favourite food?
            which food <does/do> {S} like most?
            what <does/do> {S} love to eat?
            what dish <does/do> {S} like best?
            what is {P} favourite dish?
            what <does/do> {S} like eating most?
            what should I cook if I want to please {S_obj}?
            do you remember what {S} <likes/like> to eat?
            which meal <does/do> {S} love?
            name {P} favourite food.
            which food is {P} favourite?
            what food <does/do> {S} like more than any other?
            what does one cook for {S_obj}?
            what <does/do> {S} like to eat best?
            what food <is/am> {S} fond of?
            what kind of food pleases {S_obj} most?
            what food is {P} favourite?
            what (dish|meal) <does/do> {S} (crave|adore|enjoy most|always order|prefer)?
            what is {P} (comfort food|dream dinner|top dish|most loved dish)?
            what <does/do> {S} (order|pick|ask for|eat) (in a restaurant|whenever possible|most often)?
            which (dish|food|meal) (makes {S_obj} happy|would please {S_obj})?
            which (dish|food|meal) (<does/do> {S} prefer|can {S} not resist)?
            what (should|can|do) I (serve|cook|order for|make for) {S_obj}?
            what would {S} (eat|order|have) (any day|for dinner|if asked)?
            what <does/do> {S} (enjoy|prefer|adore) (at the table|for dinner|when hungry)?
            for which (food|dish|meal) <does/do> {S} have a (weakness|passion)?
            {S_obj}: favourite (dish|food|meal)?
            what food would {S} (choose|pick|order)?
            which is the (dish|food) {S} (<loves/love>|<craves/crave>|<enjoys/enjoy>)?
            what do I put on the table for {S_obj}?
            ~ validation
            what food <does/do> {S} like best?
            ~ test
            which dish <does/do> {S} love most?
            tell me {P} favourite food.
            what food <does/do> {S} love eating?
        """,
        answers="""
            {his} favourite food is {V}.
            it is {V}.
            {he} <likes/like> {V}.
        """,
    ),
    attribute(
        "colour",
        "person",
        "colours",
        names="""
            {P} favourite colour
            the colour {S} <likes/like> best
            the colour {S} <loves/love>
            the colour {S} <prefers/prefer>
            {P} best loved colour
            the colour that pleases {S_obj} most
            {P} first choice of colour
            the colour {S} <wears/wear> all the time
            the colour (of {P} choice|{S} always <picks/pick>|{S} <adores/adore>|for {S_obj})
            {P} (colour|top colour|most loved colour)
        """,
        clauses="""
            which colour {S} <likes/like>
            what colour {S} <loves/love>
            which colour {S} <prefers/prefer>
            what {P} favourite colour is
            which colour {S} <likes/like> best
            what colour {S} <likes/like> most
            which colour (to pick for|to paint it for|suits) {S_obj}
            what colour {S} (would choose|always <picks/pick>|<adores/adore>|<enjoys/enjoy> most)
            in what colour {S} <wants/want> things
        """,
        statements="""
            {P} favourite colour is {V}.
            {S} <likes/like> the colour {V} best.
            the colour {S} <loves/love> is {V}.
            {S} <wants/want> everything in {V}, {his} favourite colour.
            of all colours {S} <likes/like> {V} most.
            {S} <wears/wear> {V} all the time, it is {his} favourite colour.
            {S} painted {his} room {V} because it is {his} favourite colour.
            if {S} could choose a colour, it would be {V}.
            {S} <loves/love> everything that is {V}, the best colour for {S_obj}.
            there is no colour {S} <likes/like> more than {V}.
            {P} best loved colour is {V}.
            when it comes to colours, {S} <loves/love> {V}.
            what colour {S} <likes/like> best? it is {V}.
            {S} <prefers/prefer> the colour {V}.
            {S} <is/am> very fond of {V} as a colour.
            {S} <chose/chose> {V} for {his} car, {his} favourite colour.
            the colour that {S} <likes/like> is {V}.
            of the colours, {S} <likes/like> {V} best of all.
            the one colour {S} <wants/want> is {V}.
            {V} is (the colour|the shade) {S} (<adores/adore>|always <picks/pick>).
            {V} is (the colour|the shade) {S} (<likes/like> best|<prefers/prefer>).
            {S} (<adores/adore>|<prefers/prefer>|always <picks/pick>|would choose) (the colour|the shade) {V}.
            anything {V} (pleases|delights) {S_obj}, as colours go.
            for {S_obj} no colour is (as good as|better than|like) {V}.
            {P} (top colour|most loved colour|first choice of colours) is {V}.
            {S} <paints/paint> everything {V}, the colour {he} <loves/love>.
            paint it {V} if you want to please {S_obj}, it is {his} colour.
            {V} has always been the colour for {S_obj}.
            {P} (bike|coat|room|door) is {V}, {his} favourite colour.
            among colours, {V} is the one (for {S_obj}|{S} <likes/like>).
            ~ validation
            the colour {S} <likes/like> best is {V}.
            ~ test
            {P} favourite among colours is {V}.
            the colour {S} <likes/like> most is {V}.
            {S} <loves/love> the colour {V} most of all.
        """,
        updates="""
            {P} favourite colour is now {V}.
            {S} <has/have> changed {his} mind: {his} favourite colour is {V} now.
            lately {S} <likes/like> the colour {V} more.
            these days {S} <prefers/prefer> the colour {V}.
            it is the colour {V} now that {S} <likes/like> best.
            {S} no longer <likes/like> that colour: {he} <prefers/prefer> {V} now.
            {V} has (replaced|taken the place of) {P} old favourite colour.
            {P} (top|most loved) colour is {V} (these days|now|nowadays).
            now the colour (for {S_obj}|{S} <adores/adore>|{S} always <picks/pick>) is {V}.
            ~ validation
            now {P} favourite colour is {V}.
            ~ test
            {P} new favourite colour is {V}.
        """,
        questions="""
            what is {P} favourite colour?
            which colour <does/do> {S} like best?
            what colour <does/do> {S} love?
            which colour is {P} favourite?
            what colour <does/do> {S} like most?
            do you remember {P} favourite colour?
            what colour should I pick for {S_obj}?
            name {P} favourite colour.
            what colour <does/do> {S} prefer?
            which colour is the one {S} <likes/like>?
            what is the colour {S} <loves/love>?
            which colour should it be for {S_obj}?
            what colour (<does/do> {S} adore|would {S} choose|pleases {S_obj}|<does/do> {S} always pick)?
            in what colour <does/do> {S} want (things|everything)?
            what is {P} (top colour|most loved colour|colour of choice)?
            {S_obj}: which colour?
            what colour should I paint it for {S_obj}?
            which shade <does/do> {S} (like most|prefer|love)?
            of all colours, which one <does/do> {S} (like|love|prefer)?
            ~ validation
            what colour <does/do> {S} like best?
            ~ test
            which colour <does/do> {S} love most?
            tell me {P} favourite colour.
            what colour is {P} favourite?
        """,
        answers="""
            {his} favourite colour is {V}.
            it is {V}.
            {he} <likes/like> {V}.
        """,
    ),
    attribute(
        "instrument",
        "person",
        "instruments",
        names="""
            {P} instrument
            the instrument {S} <plays/play>
            the instrument {S} <practises/practise>
            the instrument {S} <is/am> learning
            the name of {P} instrument
            the instrument {S} <owns/own>
            the thing {S} <plays/play> in the band
            {P} favourite instrument
            the instrument {S} (can play|<has/have> at home|took lessons on|picked up|<brings/bring> along)
            what {S} <plays/play> in the orchestra
        """,
        clauses="""
            what {S} <plays/play>
            what instrument {S} <plays/play>
            which instrument {S} <is/am> learning
            what {P} instrument is
            which instrument {S} <practises/practise>
            what instrument {S} can play
            which instrument {S} (can play|<has/have> at home|took up|<brings/bring> along|chose)
            what {S} <plays/play> (in the band|at home|at parties)
            on which instrument {S} <is/am> good
        """,
        named="the {V}",
        statements="""
            {S} <plays/play> the {V}.
            {S} <is/am> learning to play the {V}.
            {S} <plays/play> the {V} in a band.
            {P} instrument is the {V}.
            {S} <practises/practise> the {V} every evening.
            {S} <has/have> played the {V} since school.
            the instrument {S} <plays/play> is the {V}.
            {S} <takes/take> lessons on the {V}.
            {S} <can/can> play the {V}.
            {S} <is/am> good at playing the {V}.
            {S} <owns/own> a {V} and <plays/play> it well.
            the {V} is the instrument {S} <loves/love>.
            {S} <has/have> taken up the {V}.
            {S} <teaches/teach> the {V} at a music school.
            with friends, {S} <plays/play> the {V}.
            as {his} instrument {S} <chose/chose> the {V}.
            playing the {V} is what {S} <does/do> in the evening.
            {P} choice of instrument is the {V}.
            {S} (<practises/practise>|<performs/perform> on) the {V}(| every day| after work| at home).
            {S} (<is/am> busy with|<enjoys/enjoy>) the {V}(| every day| after work| at home).
            the {V} is (what|the instrument) {S} (<plays/play>|<practises/practise>).
            the {V} is (what|the instrument) {S} (<has/have> at home|took up).
            in the (orchestra|school band|village band) {S} <plays/play> the {V}.
            {S} (bought|got|rented) a {V} and <plays/play> it (daily|often|badly|with joy).
            you can hear {S_obj} on the {V}(| every evening| on Sundays).
            when there is music, {S} <plays/play> the {V}.
            on the {V} {S} <is/am> (good|quite a master|a beginner).
            {S} <brings/bring> the {V} to every party and <plays/play> it.
            the {V} keeps {S_obj} busy as {his} instrument.
            {S} (<makes/make> music|<performs/perform>) (on|with) the {V}.
            of all instruments {S} (picked|chose|<loves/love>) the {V}.
            ~ validation
            {S} <has/have> learned to play the {V}.
            ~ test
            {S} <has/have> lessons to learn the {V}.
            {P} instrument has always been the {V}.
            in the band {S} <plays/play> the {V}.
        """,
        questions="""
            what instrument <does/do> {S} play?
            which instrument <does/do> {S} play?
            what is {P} instrument?
            what <does/do> {S} play in the band?
            what instrument <is/am> {S} learning?
            do you remember which instrument {S} <plays/play>?
            which instrument <does/do> {S} practise?
            what instrument can {S} play?
            name the instrument {S} <plays/play>.
            which instrument did {S} take up?
            what is the name of {P} instrument?
            which instrument is the one {S} <plays/play>?
            which instrument (<does/do> {S} have at home|can {S} play)?
            which instrument (<does/do> {S} bring along|did {S} choose)?
            on which instrument (<is/am> {S} good|<does/do> {S} make music|<does/do> {S} take lessons)?
            what <does/do> {S} play in the (orchestra|school band|evening)?
            with which instrument <does/do> {S} (perform|make music)?
            {S_obj}: which instrument?
            what (sort|kind) of instrument <does/do> {S} (play|own)?
            what music instrument <is/am> {S} (busy with|good at)?
            ~ validation
            what instrument <does/do> {S} practise?
            ~ test
            tell me which instrument {S} <plays/play>.
            what is the instrument {S} <plays/play>?
            which instrument is {P} own?
        """,
        answers="""
            {he} <plays/play> the {V}.
            the {V}.
            the {V}.
        """,
    ),
    attribute(
        "sport",
        "person",
        "sports",
        names="""
            {P} hobby
            {P} favourite sport
            {P} sport
            the sport {S} <does/do>
            the hobby {S} <has/have>
            {P} favourite hobby
            the hobby {S} <enjoys/enjoy>
            the thing {S} <does/do> for fun
            the thing {S} <does/do> at the weekend
            {P} favourite pastime
            {P} (pastime|leisure activity|passion|weekend activity|spare time activity)
            what {S} <does/do> (to relax|after work|on Sundays|in {his} spare time)
            the (sport|hobby|pastime) {S} (picked|took up|<practises/practise>|<lives/live> for|chose)
            the (sport|hobby) that keeps {S_obj} (fit|busy|happy)
        """,
        clauses="""
            what {S} <does/do> for fun
            what {S} <does/do> in {his} free time
            which hobby {S} <has/have>
            what sport {S} <likes/like>
            which sport {S} <does/do>
            how {S} <spends/spend> the weekend
            what {P} hobby is
            what {S} <does/do> (to relax|after work|on Sundays|to keep fit|in {his} spare time)
            which (sport|hobby|pastime) {S} (took up|chose|<practises/practise>)
            which (sport|hobby|pastime) {S} (<enjoys/enjoy>|<is/am> fond of)
            how {S} (<relaxes/relax>|<keeps/keep> fit|<fills/fill> {his} free hours)
            what keeps {S_obj} busy (on Sundays|after work|at the weekend)
        """,
        statements="""
            {P} favourite sport is {V}.
            {S} <spends/spend> every weekend on {V}.
            {S} <is/am> mad about {V}.
            {S} <does/do> {V} as a hobby.
            {P} hobby is {V}.
            {S} <took/took> up {V} a few years ago.
            the hobby {S} <likes/like> most is {V}.
            in {his} free time {S} <does/do> a lot of {V}.
            {S} <likes/like> {V} most of all hobbies.
            {S} <has/have> a hobby, and it is {V}.
            what {S} <does/do> for fun is {V}.
            for fun {S} <does/do> {V}.
            {S} <has/have> been doing {V} for years as {his} sport.
            what {S} <does/do> in {his} free time is {V}.
            every weekend {S} <goes/go> in for {V}.
            {S} <enjoys/enjoy> {V} as a sport.
            there is no hobby {S} <likes/like> more than {V}.
            {P} free time is all about {V}.
            {S} <picked/picked> {V} as {his} sport.
            {S} <does/do> {V} for a hobby.
            {S} <has/have> taken {V} up as a hobby.
            {V} is a hobby of {S_obj}.
            {S} <keeps/keep> busy with {V}, a fine hobby.
            {S} <says/say> that {V} is the best of all hobbies.
            {S} <needs/need> {V} to relax, it is {his} hobby.
            {S} (<practises/practise>|<enjoys/enjoy>|<adores/adore>) {V}(| after work).
            {S} (<practises/practise>|<enjoys/enjoy>|<adores/adore>) {V}( on Sundays| in {his} spare time).
            {S} (<is/am> keen on|<is/am> into) {V}(| after work| on Sundays| in {his} spare time).
            {V} is (what|the thing) {S} <does/do> (to relax|after work|on Sundays|to keep fit|for pleasure).
            {V} is {P} (hobby|pastime|passion|sport|favourite pastime|leisure activity).
            {V} (fills|takes up) {P} (free time|weekends|evenings|Sundays).
            {V} keeps {S_obj} (fit|busy|happy|young)(| at the weekend| on Sundays| after work).
            {P} (pastime|passion|weekend activity|leisure activity) is {V}.
            to (relax|keep fit|have fun), {S} (<turns/turn> to|<does/do>|<chooses/choose>) {V}.
            on (Sundays|free days|Saturdays) {S} <goes/go> (out for|in for|for) {V}.
            after work {S} <finds/find> time for {V}.
            as a (pastime|sport|leisure activity), {S} (picked|chose|<enjoys/enjoy>) {V}.
            {S} (<lives/live> for|<dreams/dream> of) {V}, {his} (hobby|pastime|sport).
            {S} (never <tires/tire> of|cannot stop) {V}, {his} (hobby|pastime|sport).
            {S} (joined a club for|signed up for|got hooked on) {V}.
            when {S} <has/have> a free (day|hour|weekend), it is time for {V}.
            if you look for {S_obj} on a Sunday, {he} <is/am> busy with {V}.
            {S} <has/have> a passion for {V}.
            nothing is more fun for {S_obj} than {V}.
            {V}, that is {P} (idea of fun|hobby|way to relax).
            {S} <relaxes/relax> (with|by means of|through) {V}.
            ~ validation
            {S} <has/have> {V} as a hobby.
            ~ test
            the sport {S} <likes/like> most is {V}.
            {P} main hobby is {V}.
            at the weekend {S} <does/do> {V}, {his} hobby.
        """,
        updates="""
            {P} (new|latest) (hobby|pastime|sport|passion) is {V}.
            {S} (gave up the old hobby|got bored) and took up {V}.
            {S} (switched|went over|changed) to {V} (as a sport|for fun|as {his} hobby).
            {V} is {P} (hobby|pastime|sport) now.
            these days {S} <spends/spend> {his} (free time|weekends) on {V}.
            {S} no longer <does/do> that for fun: {V} it is.
            lately {S} <is/am> (into|mad about|busy with) {V} as a hobby.
        """,
        questions="""
            what is {P} hobby?
            what is {P} favourite sport?
            what <does/do> {S} do in {his} free time?
            which hobby <does/do> {S} have?
            what <does/do> {S} do at the weekend?
            which sport <does/do> {S} like most?
            do you remember what {P} hobby is?
            what <does/do> {S} do for fun?
            name {P} hobby.
            which hobby <does/do> {S} enjoy?
            what is the sport {S} <likes/like>?
            how <does/do> {S} spend {his} weekend?
            what hobby is {P} favourite?
            what sort of hobby <does/do> {S} like?
            what kind of sport <is/am> {S} fond of?
            what hobby keeps {S_obj} busy?
            what <does/do> {S} do (to relax|after work|on Sundays)?
            what <does/do> {S} do (to keep fit|in {his} spare time|for pleasure)?
            what is {P} (pastime|passion|leisure activity|weekend activity|favourite pastime)?
            which (pastime|sport) (did {S} take up|<does/do> {S} practise)?
            which (pastime|sport) (<is/am> {S} fond of|keeps {S_obj} fit)?
            how <does/do> {S} (relax|keep fit|fill {his} free hours|spend {his} Sundays)?
            what (fills {P} free time|keeps {S_obj} busy after work|takes up {P} weekends)?
            with what <does/do> {S} (relax|fill {his} weekends|spend {his} free time)?
            what (sport|pastime) (<is/am> {S} into|<does/do> {S} enjoy|did {S} choose)?
            {S_obj}: which (hobby|sport|pastime)?
            for what <does/do> {S} have a passion?
            what <is/am> {S} (mad about|keen on) in {his} free time?
            what sort of (fun|pastime) <does/do> {S} like?
            which sport would {S} (choose|name)?
            ~ validation
            what hobby <does/do> {S} have?
            ~ test
            tell me what {P} hobby is.
            which sport or hobby <does/do> {S} like?
            what sport <does/do> {S} do at the weekend?
        """,
        answers="""
            {his} hobby is {V}.
            it is {V}.
            {he} <does/do> {V}.
        """,
    ),
    attribute(
        "language",
        "person",
        "languages",
        names="""
            {P} language
            the language {S} <is/am> learning
            the language {S} <speaks/speak>
            the foreign language {S} <knows/know>
            {P} foreign language
            the language {S} <studies/study>
            the language of {P} lessons
            the language {S} can speak
            {P} new language
            the language {S} (took up|chose|<practises/practise>)
            the language {S} (<wants/want> to master|<reads/read> in|<dreams/dream> in)
            {P} (second language|course language)
            the (subject|language) of {P} (course|classes)
        """,
        clauses="""
            which language {S} <speaks/speak>
            what language {S} <is/am> learning
            which language {S} <studies/study>
            what language {S} can speak
            which foreign language {S} <learns/learn>
            what language {S} <takes/take> lessons in
            which language {S} (took up|chose|<practises/practise>)
            which language {S} (<wants/want> to master|<teaches/teach>|<reads/read>)
            what language {P} (course|classes|lessons|books) (is|are) in
            in what language {S} can (talk|write|read)
        """,
        statements="""
            {S} <is/am> learning {V}.
            {S} <speaks/speak> {V} at home.
            {S} <takes/take> {V} lessons.
            {S} <studies/study> {V} in the evening.
            the language {S} <is/am> learning is {V}.
            {S} <wants/want> to speak {V} well.
            {S} <speaks/speak> some {V}.
            {S} can speak {V}.
            {S} <is/am> good at {V}, a foreign language.
            {S} <has/have> started to learn {V}.
            {P} new language is {V}.
            at school {S} <learns/learn> {V}.
            the foreign language {S} <speaks/speak> is {V}.
            {S} <reads/read> books in {V} to learn the language.
            with friends {S} <speaks/speak> {V}.
            {S} <teaches/teach> {V} to children.
            {S} <is/am> busy with {V} lessons.
            {S} <has/have> a {V} lesson every week.
            {S} <goes/go> to {V} classes.
            {S} <started/started> with {V} classes.
            {S} <learns/learn> {V} words every day.
            {S} (<practises/practise>|<masters/master>) {V}(| every day| with a teacher| rather well).
            {S} (<understands/understand>|<writes/write>) {V}(| every day| with a teacher| rather well).
            {V} is the language {S} (<speaks/speak>|took up|<practises/practise>).
            {V} is the language {S} (<wants/want> to master|chose).
            {S} (signed up for|joined|<attends/attend>) a (course|class) in {V}.
            {S} (<talks/talk>|<writes/write> letters|<sings/sing>|<dreams/dream>) in {V}.
            {P} (course|second language|foreign language|teacher) is {V}.
            {V} is (being learned|spoken|studied) by {S_obj}.
            in {V} {S} can (talk|read|write letters|order food).
            for {his} work {S} (<needs/need>|<uses/use>|<learns/learn>) {V}.
            {S} (took up|picked up|chose) {V} (last year|as a language|at school).
            (apart from|besides) English {S} (<knows/know>|<speaks/speak>|<reads/read>) {V}.
            learning {V} (takes {P} evenings|is {P} plan|keeps {S_obj} busy).
            {V} words are all over {P} (kitchen|desk|notebook), {he} <is/am> learning it.
            {S} <is/am> (fluent in|studying|improving {his}|brushing up {his}) {V}.
            it is {V} that {S} (<speaks/speak>|<learns/learn>|<studies/study>).
            if you talk {V}, {S} will understand you.
            a teacher comes to help {S_obj} with {V}.
            ~ validation
            {S} <is/am> taking {V} lessons.
            ~ test
            {S} <has/have> lessons in {V}, a new language.
            {V} is the language {S} <is/am> learning.
            {S} <learns/learn> to speak {V}.
        """,
        updates="""
            {S} (switched|changed|went over) to {V} as a language.
            {S} gave up that language and <learns/learn> {V} now.
            now it is {V} that {S} <studies/study>.
            {P} (lessons|classes) are in {V} now.
        """,
        questions="""
            which language <is/am> {S} learning?
            what language <does/do> {S} speak?
            what language <is/am> {S} studying?
            which language <does/do> {S} speak?
            do you remember which language {S} <is/am> learning?
            what language <does/do> {S} take lessons in?
            what foreign language <does/do> {S} speak?
            name the language {S} <is/am> learning.
            what is the language {S} <is/am> learning?
            which language can {S} speak?
            which language did {S} start to learn?
            what language <is/am> {S} busy with?
            what language <does/do> {S} want to speak?
            what language <is/am> {S} good at?
            which language (did {S} take up|<does/do> {S} practise)?
            which language (<does/do> {S} want to master|<does/do> {S} teach)?
            in (which|what) language can {S} (talk|read|write)?
            what (course|class) (did {S} join|<does/do> {S} attend|did {S} sign up for)?
            what language (<is/am> {S} fluent in|are {P} lessons in|did {S} choose|<does/do> {S} understand)?
            (apart from|besides) English, what <does/do> {S} speak?
            what is {P} (second language|foreign language|language)?
            what (tongue|foreign tongue) <does/do> {S} (know|speak)?
            {S_obj}: which language?
            which language (keeps {S_obj} busy|takes {P} evenings)?
            what can {S} speak?
            ~ validation
            what language <is/am> {S} learning?
            ~ test
            tell me the language {S} <is/am> learning.
            which language <does/do> {S} learn?
            what is the language {S} <speaks/speak>?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            it is {V}.
        """,
    ),
    attribute(
        "pet",
        "person",
        "pet_names",
        details="dog cat horse rabbit parrot hamster pony tortoise goat kitten puppy canary",
        names="""
            the name of {P} {A}
            {P} {A}'s name
            the name {S} gave {his} {A}
            the name {P} {A} has
            the name {S} chose for {his} {A}
            the name of the {A} that {S} <has/have>
            the {A} of {S_obj}
            the name (on {P} {A}'s collar|that {P} {A} got|{P} {A} answers to)
            what {S} <calls/call> the {A}
        """,
        clauses="""
            what {P} {A} is called
            what {S} <calls/call> {his} {A}
            how {S} named {his} {A}
            what the name of {P} {A} is
            which name {P} {A} has
            what name {S} chose for {his} {A}
            what {P} {A} is named
            what (to call|to shout to call) {P} {A}
            which name {S} (gave|found for|picked for) {his} {A}
            what {P} {A} answers to
        """,
        statements="""
            {S} <has/have> a {A} called {V}.
            {S} <has/have> a {A} named {V}.
            {P} {A} is called {V}.
            {P} {A} is named {V}.
            the name of {P} {A} is {V}.
            {S} just got a {A} and named it {V}.
            {P} little {A} goes by the name of {V}.
            {S} <keeps/keep> a {A}, its name is {V}.
            {P} {A} answers to the name {V}.
            {P} {A} has the name {V}.
            {S} <calls/call> {his} {A} {V}.
            {S} <has/have> a {A}, and it is called {V}.
            {V}, that is what {S} <calls/call> {his} {A}.
            {S} <gave/gave> {his} {A} the name {V}.
            the {A} {S} <has/have> is called {V}.
            {S} <chose/chose> the name {V} for {his} {A}.
            there is a {A} at {P} house called {V}.
            {S} <went/went> for a walk with {V}, {his} {A}.
            {S} <loves/love> {V}, {his} {A}.
            {V} is (the name of {P} {A}|what {P} {A} is called|the {A} that {S} <has/have>).
            {S} (<owns/own>|bought|found|adopted) a {A} (and called it|with the name|by the name of) {V}.
            {P} {A} (got|was given|bears|answers to) the name {V}.
            at {P} house there is a {A} (by the name of|with the name|we all call) {V}.
            {P} {A}, {V}, (sleeps all day|is very clever|eats a lot|likes to play).
            {V} is {P} {A}.
            {S} <feeds/feed> {his} {A} {V} twice a day.
            when {S} <calls/call> {V}, {his} {A} comes.
            (say hello to|this is) {V}, {P} {A}.
            {S} <lives/live> with a {A} called {V}.
            for {his} {A} {S} (picked|found|chose) the name {V}.
            ~ validation
            {S} <has/have> a {A} and its name is {V}.
            ~ test
            {S} <has/have> a little {A} by the name of {V}.
            {S} named {his} {A} {V}.
            {V} is the name of {P} {A}.
        """,
        questions="""
            what is {P} {A} called?
            what is the name of {P} {A}?
            what is {P} {A} named?
            what did {S} name {his} {A}?
            what <does/do> {S} call {his} {A}?
            do you remember the name of {P} {A}?
            which name does {P} {A} have?
            which name did {S} choose for {his} {A}?
            what is the {A} of {S_obj} called?
            name {P} {A}.
            {P} {A}, what is it called?
            what name does {P} {A} have?
            what <does/do> {S} call the {A}?
            can you say what {P} {A} is called?
            what name did {S} (give|pick for|find for) {his} {A}?
            (which|what) name (does {P} {A} answer to|is on {P} {A}'s collar)?
            how do I call {P} {A}?
            who is {P} {A}?
            {P} {A}: what name?
            the {A} of {S_obj}, (what is its name|how is it called)?
            by what name does {P} {A} go?
            what do (they|people) call {P} {A}?
            ~ validation
            do you know what {P} {A} is called?
            ~ test
            tell me the name of {P} {A}.
            what name did {S} give {his} {A}?
            how is {P} {A} called?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            the {A} is called {V}.
        """,
    ),
    attribute(
        "birthday",
        "person",
        "dates",
        names="""
            {P} birthday
            {P} date of birth
            the date of {P} birthday
            the day {S} <was/was> born
            the day of {P} birthday
            the date {S} <was/was> born
            the birthday of {S_obj}
            the day {S} <celebrates/celebrate> {his} birthday
            the (date|day) {S} (came into the world|<turns/turn> a year older|<gets/get> {his} presents)
            the (date|day) for {P} (cake|birthday party)
        """,
        clauses="""
            when {S} <was/was> born
            when {P} birthday is
            on which date {S} <was/was> born
            what day {P} birthday is
            when {S} <has/have> {his} birthday
            on what day {S} <celebrates/celebrate> {his} birthday
            what {P} date of birth is
            when (to bring a cake for|to congratulate|we celebrate) {S_obj}
            on (what|which) (day|date) {S} (came into the world|<turns/turn> a year older|<gets/get> presents)
            what date {P} birthday is on
        """,
        statements="""
            {P} birthday is on {V}.
            {S} <has/have> {his} birthday on {V}.
            {S} <was/was> born on {V}.
            {S} <celebrates/celebrate> {his} birthday on {V}.
            the date of {P} birthday is {V}.
            we celebrate {P} birthday on {V}.
            {P} big day is {V}, when {he} <was/was> born.
            on {V} it is {P} birthday.
            {S} <turns/turn> a year older on {V}.
            {P} date of birth is {V}.
            {S} <came/came> into the world on {V}.
            the day {S} <was/was> born was {V}.
            mark {V} for {P} birthday.
            {P} birthday is always on {V}.
            {P} birthday comes on {V}.
            {P} birthday is every year on {V}.
            {V} is the day when {S} <was/was> born.
            {V} is (the birthday of {S_obj}|{P} birthday|when {S} <was/was> born|the day {S} <was/was> born).
            on {V} {S} (<turns/turn> a year older|<has/have> {his} birthday|came into the world).
            on {V} {S} (<gets/get> {his} presents|<was/was> born).
            (bring a cake|buy a present|call) on {V}, it is {P} birthday.
            {P} (birthday|birthday party|day of birth) (is|takes place) on {V}.
            each year on {V} (we have cake for|the family celebrates) {S_obj}, it is {his} birthday.
            {P} passport says that {he} <was/was> born on {V}.
            it was on {V} that {S} <was/was> born.
            {S} (saw the light of day|arrived in this world) on {V}.
            do not forget {P} birthday on {V}.
            ~ validation
            {P} birthday falls on {V}.
            ~ test
            {V} is {P} birthday.
            {S} <has/have> a birthday party on {V}, the day {he} <was/was> born.
        """,
        questions="""
            when is {P} birthday?
            on which date is {P} birthday?
            when <was/was> {S} born?
            what is the date of {P} birthday?
            when <does/do> {S} celebrate {his} birthday?
            do you remember {P} birthday?
            what is {P} date of birth?
            on which day <was/was> {S} born?
            what date is {P} birthday on?
            when <does/do> {S} turn a year older?
            name the date of {P} birthday.
            what day <was/was> {S} born?
            what is the day of {P} birthday?
            (on which day|on what date|when) did {S} come into the world?
            when (do we celebrate|should I congratulate|do I need a cake for) {S_obj}?
            (which|what) (day|date) <was/was> {S} born on?
            which (day|date) is {P} birthday?
            on which day <does/do> {S} (turn a year older|get {his} presents|have {his} birthday)?
            {S_obj}: when is the birthday?
            when <does/do> {S} have {his} birthday?
            what does {P} passport say about {his} date of birth?
            ~ validation
            what day is {P} birthday?
            ~ test
            tell me when {P} birthday is.
            on what date <was/was> {S} born?
            on which day is {P} birthday?
        """,
        answers="""
            on {V}.
            on {V}.
            {his} birthday is on {V}.
        """,
    ),
    attribute(
        "code",
        "access",
        "codes",
        names="""
            {K}
            the value of {K}
            the right value of {K}
            the number I use as {K}
            the number they gave me as {K}
            the current value of {K}
            what (I set|you need) as {K}
            the one (to use|to type) as {K}
            the (digits|number) for {K}
        """,
        clauses="""
            what {K} is
            what {K} was
            what number {K} is
            what value {K} has
            what to use as {K}
            what I use as {K}
            how {K} goes
            what (to type|to enter|to say) for {K}
            what they (set|gave me) as {K}
        """,
        statements="""
            {K} is {V}.
            {K} is {V}, please keep it in mind.
            please remember that {K} is {V}.
            {K} was set to {V}.
            I wrote down {K}: {V}.
            note that {K} is {V}.
            they gave me {K}, it is {V}.
            here is {K}: {V}.
            I was told that {K} is {V}.
            {V} is {K}.
            for later: {K} is {V}.
            I got {K} today and it is {V}.
            {K} should be {V}.
            {K} reads {V}.
            for {K} use {V}.
            use {V} as {K}.
            the value of {K} is {V}.
            I have been told {K}: it is {V}.
            {K} must be {V}.
            you need {V}, that is {K}.
            I found {K}, and it says {V}.
            do not lose {K}: {V}.
            I have {K} here, {V}.
            this is {K}: {V}.
            they set {K} to {V}.
            {V} is (the value of|what they gave me as|what to type for|what you need as|to be used as) {K}.
            (type|enter|say|give|take) {V} (as|for|when they want|if somebody wants) {K}.
            {V} (works|goes|is right|was set|will do) (as|for) {K}.
            with {V} you have {K}.
            (write down|save|keep|take down) {V} as {K}.
            {K} (has the value|goes like this:|turned out to be|looks like this:) {V}.
            {K}? (that is|write|take) {V}.
            my (notes|papers|friend) (say|said) {V} for {K}.
            it is {V} that (you need|they gave me|opens it), {K} I mean.
            I (got|have|received|saved) {V} as {K}.
            they (sent|mailed|handed) me {K} today, {V}.
            somebody (set|changed) {K} and it (is|reads) {V}.
            ~ validation
            they told me that {K} is {V}.
            keep in mind that {K} is {V}.
            ~ test
            please note {K}, it is {V}.
            remember {K}: {V}.
            I was given {K} today: {V}.
        """,
        updates="""
            {K} has changed to {V}.
            {K} is now {V}.
            they changed {K}, it is {V} now.
            the new value of {K} is {V}.
            {K} was wrong: it is really {V}.
            we have a new value for {K}: {V}.
            forget the old one: {K} is {V}.
            from now on {K} is {V}.
            {K} is different now: {V}.
            {K} does not work any more: use {V}.
            the old value of {K} is gone: now it is {V}.
            {V} (replaces|takes the place of) the old value of {K}.
            {K} is (a new one|another one): {V}.
            (use|type|take) {V} for {K} from now on, (the old one is gone|not the old one).
            they gave me (another value|something new) for {K}: {V}.
            since today {K} (is|reads) {V}.
            {V} is {K} now.
            ~ validation
            {K} is not the same any more: it is {V} now.
            ~ test
            {K} was changed today and is {V} now.
            a change: {K} is now {V}.
        """,
        questions="""
            what is {K}?
            what was {K}?
            can you tell me {K}?
            do you remember {K}?
            please give me {K}.
            I need {K}.
            which number is {K}?
            what was {K} again?
            I forgot {K}, what is it?
            could you repeat {K}?
            {K}, please.
            what is the value of {K}?
            I have lost {K}, can you help?
            what number did I give you for {K}?
            give me {K} again.
            say {K} once more, please.
            which one is {K}?
            I do not remember {K}, do you?
            what (do I|should I|must I) (type|enter|say|use) (for|as) {K}?
            (which|what) value does {K} have?
            how does {K} go?
            (look up|find|read me|show me) {K}, please.
            what did (they|I) (set|get|save|write down) as {K}?
            {K}: what value was it?
            I (cannot find|am missing|need to type|have to enter) {K}, what is it?
            what works (as|for) {K}?
            where were we with {K}, what was the value?
            ~ validation
            please repeat {K}.
            do you know {K}?
            ~ test
            tell me {K} again, please.
            what did I say {K} was?
            {K}, what is it?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            it is {V}.
            {K} is {V}.
        """,
    ),
    attribute(
        "password",
        "account",
        "passwords",
        names="""
            {K}
            the value of {K}
            the right value of {K}
            what I chose as {K}
            what I use as {K}
            the current value of {K}
            the one I picked as {K}
            what (I set|you need) as {K}
            the one (to use|to type) as {K}
        """,
        clauses="""
            what {K} is
            what {K} was
            what I use as {K}
            what value {K} has
            what to use as {K}
            what I picked as {K}
            how {K} goes
            what (to type|to enter|to say) for {K}
            what they (set|gave me) as {K}
        """,
        statements="""
            {K} is {V}.
            {K} was set to {V}.
            please remember that {K} is {V}.
            here is {K}: {V}.
            I picked {V} as {K}.
            note that {K} is {V}.
            they told me {K}, it is {V}.
            I chose {K} myself: {V}.
            {K} should be {V}.
            {K} reads {V}.
            for {K} use {V}.
            use {V} as {K}.
            the value of {K} is {V}.
            I have been told {K}: it is {V}.
            {K} must be {V}.
            you need {V}, that is {K}.
            do not lose {K}: {V}.
            I have {K} here, it is {V}.
            they set {K} to {V}.
            {V} is (the value of|what they gave me as|what to type for|what you need as|to be used as) {K}.
            (type|enter|say|give|take) {V} (as|for|when they want|if somebody wants) {K}.
            {V} (works|goes|is right|was set|will do) (as|for) {K}.
            with {V} you have {K}.
            (write down|save|keep|take down) {V} as {K}.
            {K} (has the value|goes like this:|turned out to be|looks like this:) {V}.
            {K}? (that is|write|take) {V}.
            my (notes|papers|friend) (say|said) {V} for {K}.
            it is {V} that (you need|they gave me|opens it), {K} I mean.
            I (got|have|received|saved) {V} as {K}.
            they (sent|mailed|handed) me {K} today, {V}.
            somebody (set|changed) {K} and it (is|reads) {V}.
            ~ validation
            I was told that {K} is {V}.
            ~ test
            please note {K}, it is {V}.
            I set {K} to {V}.
            remember {K}: {V}.
        """,
        updates="""
            {K} has changed to {V}.
            {K} is now {V}.
            they changed {K}, it is {V} now.
            we have a new value for {K}: {V}.
            forget the old one: {K} is {V}.
            from now on {K} is {V}.
            {K} is different now: {V}.
            {K} does not work any more: use {V}.
            the old value of {K} is gone: now it is {V}.
            the new value of {K} is {V}.
            {V} (replaces|takes the place of) the old value of {K}.
            {K} is (a new one|another one): {V}.
            (use|type|take) {V} for {K} from now on, (the old one is gone|not the old one).
            they gave me (another value|something new) for {K}: {V}.
            since today {K} (is|reads) {V}.
            {V} is {K} now.
            ~ validation
            {K} is not the same any more: it is {V} now.
            ~ test
            a change: {K} is now {V}.
        """,
        questions="""
            what is {K}?
            what was {K}?
            can you tell me {K}?
            do you remember {K}?
            I forgot {K}, what is it?
            please give me {K}.
            what did I pick as {K}?
            could you repeat {K}?
            {K}, please.
            what is the value of {K}?
            I have lost {K}, can you help?
            what did I choose as {K}?
            give me {K} again.
            say {K} once more, please.
            I do not remember {K}, do you?
            I need {K}.
            what (do I|should I|must I) (type|enter|say|use) (for|as) {K}?
            (which|what) value does {K} have?
            how does {K} go?
            (look up|find|read me|show me) {K}, please.
            what did (they|I) (set|get|save|write down) as {K}?
            {K}: what value was it?
            I (cannot find|am missing|need to type|have to enter) {K}, what is it?
            what works (as|for) {K}?
            where were we with {K}, what was the value?
            ~ validation
            please repeat {K}.
            ~ test
            tell me {K} again, please.
            what did I say {K} was?
            {K}, what is it?
        """,
        answers="""
            it is {V}.
            it is {V}.
            {K} is {V}.
        """,
    ),
    attribute(
        "location",
        "item",
        "spots",
        names="""
            the place of {K}
            the place where {K} is
            the place where I keep {K}
            the place I put {K} in
            the right place for {K}
            the place to look for {K}
            the spot where I left {K}
            the (spot|place) (I chose for|where you find|where I stored) {K}
            what {K} (is|lies) in
        """,
        clauses="""
            where {K} is
            where I put {K}
            where I left {K}
            where to look for {K}
            where I keep {K}
            in which place I put {K}
            where {K} can be found
            what I put {K} in
            where {K} (lies|went|has gone|belongs|ended up)
            where (to find|I stored|I placed|we keep) {K}
            in what {K} (is|lies)
        """,
        statements="""
            {K} is in {V}.
            I put {K} in {V}.
            I left {K} in {V}.
            you can find {K} in {V}.
            I keep {K} in {V}.
            {K} is lying in {V}.
            I have placed {K} in {V}.
            if you look for {K}, it is in {V}.
            {K} belongs in {V}.
            {K} is kept in {V}.
            I dropped {K} in {V}.
            I stored {K} in {V}.
            look in {V} for {K}.
            in {V} you will find {K}.
            I packed {K} in {V}.
            somebody put {K} in {V}.
            {K} stays in {V}.
            I always put {K} in {V}.
            it is in {V} that I keep {K}.
            I locked {K} away in {V}.
            I threw {K} into {V}.
            I laid {K} down in {V}.
            in {V} (is|lies|I keep|I put|I left) {K}.
            {V} is (where|the place where) (I put|I keep|you find|I left) {K}.
            {V} (holds|contains|is the place for) {K}.
            {K} (ended up|lies|is sitting|is safe|went|was left|was placed) in {V}.
            I (tucked|dropped|set|shoved|placed) {K} (into|in) {V}.
            to find {K}, (look|search|reach) in {V}.
            you need {K}? (look in|it is in|search) {V}.
            open {V} and you (have|see|will find) {K}.
            {K} (sleeps|lives|rests) in {V}.
            after the walk I (put|left|placed) {K} in {V}.
            the (spot|place) for {K} is in {V}.
            ~ validation
            I hid {K} in {V}.
            ~ test
            {K} can be found in {V}.
            the place where I put {K} is {V}.
            I have left {K} lying in {V}.
        """,
        updates="""
            I moved {K} to {V}.
            {K} is in {V} now.
            I took {K} out and put it in {V}.
            {K} has been moved to {V}.
            from now on {K} is in {V}.
            {K} went to {V}.
            I put {K} somewhere else, in {V}.
            {K} is not there any more but in {V}.
            I (took|carried|brought|shifted) {K} (over to|into|to) {V}.
            {V} is the new place (of|for) {K}.
            {V} (now holds|holds now) {K}.
            I found a better place for {K}: it is in {V}.
            somebody moved {K}, it (lies|is) in {V} now.
            ~ validation
            now I keep {K} in {V}.
            ~ test
            I have moved {K}, it is in {V} now.
        """,
        questions="""
            where is {K}?
            where did I put {K}?
            where did I leave {K}?
            where can I find {K}?
            do you remember where {K} is?
            I am looking for {K}, where is it?
            where do I keep {K}?
            can you tell me where I put {K}?
            where should I look for {K}?
            in what place did I put {K}?
            I cannot find {K}, where did I put it?
            where do you think {K} is?
            where is {K} kept?
            what did I put {K} in?
            where (does|did) {K} (lie|go|belong|end up)?
            (what|which place) (holds|contains) {K}?
            in what (is|did I put|do I keep|did I leave) {K}?
            where (have I put|have I left|did I store|did I place|do we keep) {K}?
            I (need|miss|want|have lost) {K}, where (is it|should I look|did I leave it)?
            what place did I choose for {K}?
            where would you (look|search) for {K}?
            have you any idea where {K} is?
            {K}: where?
            ~ validation
            tell me where {K} is.
            ~ test
            where have I left {K}?
            do you know where I put {K}?
            in which place is {K}?
        """,
        answers="""
            in {V}.
            in {V}.
            it is in {V}.
            {K} is in {V}.
        """,
    ),
    attribute(
        "venue",
        "event",
        "venues",
        names="""
            the place for {K}
            the location of {K}
            the venue of {K}
            the place where we have {K}
            the place we booked for {K}
            the place of {K}
            the place where {K} is held
            the place we chose for {K}
            the (hall|building|address|site) (of|for) {K}
            the place (that hosts|we go to for|to be for|they named for|I have to be at for) {K}
            where (everybody meets|to be|people go) for {K}
        """,
        clauses="""
            where {K} is
            where {K} takes place
            where we have {K}
            which place we booked for {K}
            where to go for {K}
            at what place {K} is held
            where {K} will be
            where (to be|everybody goes|people meet|they want us|to turn up) for {K}
            (which|what) place (hosts|they chose for|was booked for|we take for) {K}
            where {K} (happens|is held|is going to be|goes on)
        """,
        statements="""
            {K} is at {V}.
            {K} will be held at {V}.
            {K} takes place at {V}.
            we booked {V} for {K}.
            {K} will be at {V}.
            we are having {K} at {V}.
            the place for {K} is {V}.
            they chose {V} for {K}.
            come to {V} for {K}.
            {K} is happening at {V}.
            we meet at {V} for {K}.
            for {K} we go to {V}.
            {V} was booked for {K}.
            {V} will host {K}.
            they are having {K} at {V}.
            we picked {V} for {K}.
            {K} is planned at {V}.
            we will all be at {V} for {K}.
            the location of {K} is {V}.
            we are all going to {V} for {K}.
            {K} brings us to {V}.
            we see each other at {V} for {K}.
            they are gathering at {V} for {K}.
            at {V} (we will have|there will be|they hold|you find|we celebrate|I will see you at) {K}.
            {V} is (where|the place where) (we have|they hold|you find|I will attend) {K}.
            {V} is the (venue|location|place|site|address) (of|for) {K}.
            {V} (hosts|is hosting|was picked for|was rented for) {K}.
            {V} (welcomes us for|has room for|is ready for) {K}.
            we (rented|took|reserved|found|settled on|decided on) {V} for {K}.
            (go|drive|walk|make your way|get yourself) to {V} for {K}.
            everybody (gathers|meets up|turns up|will be|assembles) at {V} for {K}.
            {K} (happens|goes on|is going to be|is set|was booked|gets going) at {V}.
            {K} (has|found) its (venue|home|place) at {V}.
            {K} (was booked into|brings everyone to|leads us to) {V}.
            for {K} (come to|be at|turn up at|head to|find your way to) {V}.
            if you (come to|want to join|look for) {K}, go to {V}.
            it is at {V} that (we have|they hold|we celebrate|people gather for) {K}.
            you (will find|can attend|can join) {K} at {V}.
            tickets for {K} say {V}.
            the (invitation|poster|letter) names {V} as the place (of|for) {K}.
            they (reserved|rented|picked|named) {V} as the (place|venue|site) for {K}.
            see you at {V}, that is where {K} is.
            ~ validation
            we are meeting at {V} for {K}.
            ~ test
            {V} is the place where we have {K}.
            {K} is going to be at {V}.
            we chose {V} as the place for {K}.
        """,
        updates="""
            {K} was moved to {V}.
            {K} is at {V} now.
            we changed the place: {K} will be at {V}.
            from now on {K} is at {V}.
            {K} will be somewhere else: at {V}.
            {V} is (where {K} is|the place for {K}|the venue of {K}) now.
            {K} (goes|went|moves|has been shifted) to {V} (instead|after all).
            they (switched|changed) the (venue|place|location) of {K} to {V}.
            {K} has a new (venue|place|location|address): {V}.
            the old place was too small for {K}, so it is at {V}.
            (go|come) to {V} for {K}, not to the old place.
            we (had to find|found|booked) another place for {K}: {V}.
            for {K} {V} was (booked|taken|chosen) instead.
            ~ validation
            {K} will now be held at {V}.
            ~ test
            {K} has been moved and takes place at {V} now.
        """,
        questions="""
            where is {K}?
            where will {K} be held?
            where does {K} take place?
            which place did we book for {K}?
            what is the place for {K}?
            do you remember where {K} is?
            where are we having {K}?
            where do we meet for {K}?
            where is {K} happening?
            what place did we pick for {K}?
            where do I have to go for {K}?
            name the place of {K}.
            what is the location of {K}?
            where will we have {K}?
            where is {K} to be?
            at what place will {K} be?
            where (do I go|do we go|should I be|does everybody meet|do people gather|do I turn up) for {K}?
            (what|which) (venue|hall|building) (hosts|was booked for|did they choose for|is it for) {K}?
            (what|which) (place|location) (hosts|was booked for|did they choose for|is it for) {K}?
            what is the (venue|address|site|location) (of|for) {K}?
            where (does|will) {K} (happen|go on)?
            where (do they hold|are they holding|do we celebrate|can I attend|can I find|can I join) {K}?
            to (what|which) (place|venue|address) do I (go|drive|come) for {K}?
            at (what|which) (place|venue|location) (is|do we have|do they hold) {K}?
            what place did we (book|rent|reserve|settle on|decide on) for {K}?
            what does the invitation say, where is {K}?
            {K}: where (is it|do we go|do I have to be)?
            I want to (come to|join|attend) {K}, where is it?
            where was {K} (booked|planned|set)?
            ~ validation
            where will {K} take place?
            ~ test
            tell me where {K} is held.
            at which place is {K}?
            where did we book {K}?
        """,
        answers="""
            {V}.
            at {V}.
            at {V}.
            it is at {V}.
        """,
    ),
    attribute(
        "time",
        "appointment",
        "times",
        names="""
            the time of {K}
            the time for {K}
            the hour of {K}
            the time when {K} starts
            the start of {K}
            the beginning of {K}
            the time we planned for {K}
            the time I have {K}
            the (hour|time) (they set for|to be there for|we agreed on for|to come for) {K}
        """,
        clauses="""
            when {K} is
            when {K} starts
            at what time {K} begins
            what time {K} is
            when I have {K}
            what time {K} starts
            when to be ready for {K}
            when (to come to|to leave for|to show up for|they start) {K}
            at (what|which) (hour|time) {K} (is|starts|was set|gets going)
            how late {K} is
        """,
        statements="""
            {K} is at {V}.
            {K} starts at {V}.
            {K} begins at {V}.
            {K} was set for {V}.
            I have {K} at {V}.
            the time of {K} is {V}.
            please remember {K} at {V}.
            {K} is planned for {V}.
            {K} will be at {V}.
            at {V} I have {K}.
            {K} is at {V} sharp.
            be ready at {V} for {K}.
            it is at {V} that {K} begins.
            {K} leaves the rest of the day free, it is at {V}.
            they planned {K} for {V}.
            note {K}, {V}.
            we said {V} for {K}.
            {V} is (the time of|when I have|the hour of|when they start|the time they gave me for) {K}.
            at {V} (there is|they start|comes|we go to|I must be ready for) {K}.
            {K} (gets going|opens|was booked|is set|goes ahead|is due) at {V}.
            (come|leave|show up|get up|hurry) in time for {K}, it is at {V}.
            we (agreed on|settled on|fixed|booked) {V} for {K}.
            the clock will say {V} when {K} (starts|gets going).
            my calendar (says|shows) {V} for {K}.
            they (gave me|wrote|offered) {V} for {K}.
            {K} (must not be missed|is today|cannot wait), it is at {V}.
            I have to be there at {V} for {K}.
            ~ validation
            we have {K} at {V}.
            ~ test
            {V} is the time of {K}.
            {K} is going to start at {V}.
            {K} is set to begin at {V}.
        """,
        updates="""
            {K} was moved to {V}.
            {K} is at {V} now.
            {K} starts at {V} now.
            from now on {K} is at {V}.
            there is a new time for {K}: {V}.
            {K} now is at {V}.
            now {K} starts at {V}.
            {V} is the new time (of|for) {K}.
            {K} (was put off|comes later|was shifted|has been set) to {V}.
            they changed the time of {K}: {V}.
            we (agreed|settled) on another time for {K}, {V}.
            {K} is not at the old time but at {V}.
            ~ validation
            {K} now begins at {V}.
            ~ test
            {K} has been moved and starts at {V} now.
        """,
        questions="""
            when is {K}?
            what time is {K}?
            when does {K} start?
            at what time does {K} begin?
            what is the time of {K}?
            do you remember when {K} is?
            what time does {K} start?
            when will {K} be?
            what time did we plan for {K}?
            when do I have {K}?
            {K} is at what time?
            when do I have to be ready for {K}?
            name the time of {K}.
            at (what|which) (hour|time) (is|do I have|will there be|do they start) {K}?
            when (do I have to leave|should I show up|must I be there|do I need to be ready) for {K}?
            when does {K} (get going|open|happen)?
            how late is {K}?
            what (hour|time) was (set|agreed|booked) for {K}?
            what does my calendar say, when is {K}?
            {K}: (what time|when|at what hour)?
            when are we (expected at|due for) {K}?
            ~ validation
            when does {K} begin?
            ~ test
            tell me when {K} starts.
            at which time is {K}?
            what time did I say {K} was?
        """,
        answers="""
            at {V}.
            at {V}.
            it is at {V}.
            {K} is at {V}.
        """,
    ),
    attribute(
        "title",
        "titled",
        "titles",
        names="""
            the name of {K}
            the name we gave {K}
            the name {K} has
            the name we chose for {K}
            the name that {K} got
            what we call {K}
            the title of {K}
            the name (people know|on the sign of|we found for) {K}
            the name (we settled on for|that belongs to|to use for) {K}
            what (they|people|we) (named|call) {K}
        """,
        clauses="""
            what {K} is called
            what we call {K}
            how we named {K}
            what the name of {K} is
            which name {K} has
            what name we chose for {K}
            what {K} is named
            what name (people know {K} by|we gave to {K}|stands on {K}|{K} goes by)
            how {K} is (named|known)
            what (people|they|we all) call {K}
            by what name {K} (goes|is known)
        """,
        statements="""
            {K} is called {V}.
            {K} is named {V}.
            the name of {K} is {V}.
            we named {K} {V}.
            {K} goes by the name of {V}.
            we chose {V} as the name of {K}.
            we call {K} {V}.
            {V} is what we call {K}.
            {K} was given the name {V}.
            {K} got the name {V}.
            we gave {K} the name {V}.
            we picked {V} as a name for {K}.
            people know {K} as {V}.
            {K} is known as {V}.
            they call {K} {V}.
            in the end {K} was called {V}.
            {V} was picked for {K} as a name.
            {V} became the name of {K}.
            {V} is the name they chose for {K}.
            they settled on {V} as the name of {K}.
            {V} was the best name for {K}, so we took it.
            {V} is (the name of|the name for|what people call) {K}.
            {V} is (how we named|the name given to|the name people know for) {K}.
            {V}, that is (the name of|what they call|how people know|what we named) {K}.
            {V} (stands|is written|is painted) on {K}, that is its name.
            we (went with|settled on|decided on|voted for|agreed on) {V} as (the|a) name for {K}.
            we (christened|titled|dubbed) {K} {V}.
            {K} (bears|carries|has|answers to|received|was known under) the name {V}.
            {K} goes (by|under) {V}.
            the name (we found for|people know for|on the sign of|given to) {K} is {V}.
            for {K} (we found|we liked|they took|everybody wanted) the name {V}.
            (everybody|everyone|my friend|the press) calls {K} {V}.
            if you look for {K}, ask for {V}.
            {V} (seemed|sounded) right for {K}, so that is the name.
            it is {V} that we (call|named) {K}.
            (think of|know) {K} as {V}.
            after a long talk {K} (became|was named|turned into) {V}.
            (ask for|look up|search for) {V} if you want to find {K}.
            {V} belongs to {K} as a name.
            they (gave|wrote) {V} as the name of {K}.
            ~ validation
            {V} was chosen as the name of {K}.
            ~ test
            {K} has the name {V}.
            {V} is the name of {K}.
            we chose to call {K} {V}.
        """,
        updates="""
            {K} has a new name: {V}.
            {K} is called {V} now.
            we changed the name of {K} to {V}.
            from now on {K} is called {V}.
            we gave {K} another name, {V}.
            {V} is the new name (of|for) {K}.
            {K} (was renamed|changed its name to|goes by|is known as) {V} (now|from today|since this week).
            we (renamed|re-named) {K}: it is {V}.
            the old name is gone: {V} is (what we call|the name of) {K}.
            we found a better name for {K}: {V}.
            people call {K} {V} now.
            ~ validation
            now {K} is named {V}.
            ~ test
            the new name of {K} is {V}.
        """,
        questions="""
            what is {K} called?
            what is the name of {K}?
            what is {K} named?
            what did we name {K}?
            do you remember the name of {K}?
            what do we call {K}?
            which name did we choose for {K}?
            what name did we give {K}?
            what did we call {K}?
            {K}, what is it called?
            what is {K} known as?
            name {K}.
            what name did {K} get?
            do you remember what {K} is called?
            can you say what {K} is called?
            do you know the name of {K}?
            by (what|which) name (does {K} go|do people know {K}|is {K} known)?
            what name (did we settle on for|stands on|belongs to) {K}?
            what name (did we vote for as the name of|do people use for) {K}?
            what do (people|they|we all) call {K}?
            how (is {K} named|did we name {K}|do they call {K})?
            (which|what) name does {K} (have|bear|carry|answer to)?
            what (did we christen|did they name|have we called) {K}?
            what is written on {K}?
            {K}: (what name|which name|called what)?
            if I look for {K}, what do I ask for?
            the name of {K}, what was it?
            what was {K} (called|named)(| in the end| again)?
            ~ validation
            do you know what {K} is called?
            ~ test
            tell me the name of {K}.
            which name does {K} have?
            how is {K} called?
        """,
        answers="""
            {V}.
            {V}.
            {V}.
            it is called {V}.
        """,
    ),
)

# Of the training split only. A "relation" is a person known by it alone, "my brother", or the user.
TRAINING_ATTRIBUTES: tuple[Attribute, ...] = (
    attribute(
        "name",
        "relation",
        "names",
        names="""
            {P} name
            {P} first name
            the name of {S_obj}
            the name {S} <goes/go> by
            what (people|we|they) call {S_obj}
        """,
        clauses="""
            what {P} name is
            <what {S} is called/who I am>
            what {S} <is/am> called
            by which name (I know|they know) {S_obj}
        """,
        statements="""
            {P} name is {V}.
            {S} <is/am> called {V}.
            {V} is {P} (name|first name).
            {V} is what (people|they|we) call {S_obj}.
            (people|they|friends) call {S_obj} {V}.
            {S} <goes/go> by the name (of |){V}.
            {S} <goes/go> by {V}.
            {S} <is called/am> {V}.
            {S} <has/have> the name {V}.
            {V}, that is {P} name.
            {P} parents (gave|chose) {S_obj} the name {V}.
            {S} <was/was> named {V}(| at birth).
            the name is {V}, {P} name I mean.
            <this is {V}, {S}/it is {V}, my name>.
        """,
        questions="""
            what is {P} name?
            what was {P} name(| again)?
            what <is/am> {S} called?
            <what name has {S}/who am I>?
            <who is {S}/what is the name I gave you>?
            what do (people|they|friends) call {S_obj}?
            (which|what) name <does/do> {S} (have|go by)?
            do you (know|remember|recall) {P} name?
            can you (say|tell me|repeat) {P} name?
            say {P} name(|, please).
            what is the name of {S_obj}?
            what did I say {P} name (is|was)?
            tell me {P} name.
        """,
        answers="""
            {V}.
            {V}.
            {his} name is {V}.
        """,
    ),
    attribute(
        "age",
        "person",
        "ages",
        names="""
            {P} age
            the age of {S_obj}
            {P} age (this|last) birthday
        """,
        clauses="""
            how old {S} <is/am>
            what age {S} <is/am>
            what {P} age is
            at what age {S} <is/am>
        """,
        statements="""
            {S} <is/am> {V} old.
            {S} (just turned|turned) {V} old(| last week| this spring).
            {P} age is {V}.
            {S} <has/have> lived (for |){V}.
            {V} is {P} age.
            {V} old, that is {S_obj}.
            at {V} old {S} <feels/feel> (fine|young|tired).
            it is {V} since {S} <was/was> born.
            {S} <is/am> {V} of age.
            {S} <has/have> reached {V}.
        """,
        updates="""
            {S} <had/had> a birthday and <is/am> {V} old now.
            {S} <is/am> {V} old now.
            {S} <is/am> a year older now: {V}.
            {P} age is {V} now.
        """,
        questions="""
            how old <is/am> {S}?
            what is {P} age?
            (what|which) age <is/am> {S}?
            how many years old <is/am> {S}?
            at what age <is/am> {S}?
            tell me how old {S} <is/am>.
            do you (know|remember|recall) how old {S} <is/am>?
            can you tell me {P} age?
            how (long ago|many years ago) <was/was> {S} born?
            what did I say, how old <is/am> {S}?
        """,
        answers="""
            {V}.
            {V} old.
            {he} <is/are> {V} old.
        """,
    ),
)

# What a hurried user writes instead.
CONTRACTIONS = {
    "what is": "what's", "where is": "where's", "who is": "who's", "when is": "when's", "how is": "how's",
    "i am": "I'm", "it is": "it's", "that is": "that's", "there is": "there's", "he is": "he's", "she is": "she's",
    "do not": "don't", "does not": "doesn't", "did not": "didn't", "is not": "isn't", "cannot": "can't",
    "i would": "I'd", "i will": "I'll", "we are": "we're", "they are": "they're", "let us": "let's",
}  # fmt: skip

# What things are called. `{where}` is drawn from the pool "rooms" of the split; {K} is one of the forms.
THINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "access": (
        (
            *("door code", "entry code", "alarm code", "locker code", "gate code", "safe code", "pin"),
            *("booking number", "order number", "ticket number", "room number", "phone extension"),
            *(
                "parking number",
                "account number",
                "customer number",
                "key number",
                "case number",
                "flight number",
            ),
        ),
        ("the {noun} for the {where}", "the {noun} of the {where}", "the {where} {noun}"),
    ),
    "account": (
        ("password", "wifi password", "code word", "login", "user name", "passphrase"),
        ("the {noun} for the {where}", "the {noun} of the {where}", "the {where} {noun}"),
    ),
    "item": (
        (
            *("key", "umbrella", "passport", "charger", "camera", "notebook", "wallet", "lamp", "map"),
            *("watch", "ring", "letter", "knife", "torch", "scarf", "ladder", "hammer", "book", "purse"),
            *("ticket", "jacket", "helmet", "laptop", "tablet", "phone", "blanket", "rope", "kettle"),
        ),
        ("the {noun}", "my {noun}"),
    ),
    "event": (
        (
            *("wedding", "party", "concert", "meeting", "reunion", "exhibition", "book club", "workshop"),
            *("dinner", "quiz night", "conference", "auction", "dance", "film night", "fair", "picnic"),
        ),
        ("the {noun}",),
    ),
    "appointment": (
        (
            *("train", "bus", "flight", "dentist appointment", "interview", "lesson", "lecture", "ferry"),
            *("film", "match", "haircut", "check-up", "rehearsal", "phone call", "exam", "tour", "race"),
        ),
        ("the {noun}", "my {noun}"),
    ),
    "titled": (
        (
            *("boat", "band", "team", "blog", "novel", "song", "house", "shop", "horse farm", "choir"),
            *("project", "robot", "ship", "garden", "newspaper", "game", "film club", "cabin"),
        ),
        ("our {noun}", "the {noun}"),
    ),
}

RELATIONS_FEMALE = words("sister mother aunt niece grandmother daughter wife")
RELATIONS_MALE = words("brother father uncle nephew grandfather son husband")
RELATIONS = words(
    "friend cousin colleague neighbour boss teacher roommate doctor dentist coach partner landlord"
)

LEAD_INS = by_split("""
    by the way,
    oh, and
    just so you know:
    one more thing:
    also,
    guess what:
    for your information,
    let me tell you:
    well,
    so,
    something to remember:
    did you know that
    I think that
    I wanted to tell you that
    I heard that
    as I said,
    you may want to know that
    it is true that
    listen:
    hello,
    yes,
    (hi|hey|hi there|good evening|good day|dear assistant),
    (please note|for the record|a fact|some news|to begin with|first of all|an aside):
    (anyway|okay|right|now|actually|in case you wonder|speaking of that|as for news),
    (I should mention|I forgot to say|I am happy to say|they say|I can tell you|it seems|let me add) that
    (please|can you) (remember|note|make a note) that
    (you see|I mean|look|thanks|thank you|great),
    ~ validation
    you should know this:
    and another thing:
    ~ test
    here is something else:
    before I forget:
    and by the way,
""")

QUESTION_LEAD_INS = by_split("""
    quick question:
    remind me:
    I forgot:
    tell me,
    by the way,
    now,
    please help me:
    hey,
    listen:
    hello,
    I have a question:
    sorry,
    just to be sure:
    let us see,
    I am not sure any more:
    so,
    (hi|hey there|good evening|thanks|thank you|great|okay|all right|well|anyway|please|nice),
    (can you help me|I need your help|another thing I forgot|something else|a small question|one more thing):
    (I wonder|say|let me think|think back|from memory|as you know everything),
    (earlier I told you|I said it before|I mentioned it):
    (before I go|one more time|again|before I forget),
    ~ validation
    let me ask you:
    one question:
    ~ test
    a question:
    help me remember:
    and now,
""")

ACKNOWLEDGEMENTS = (
    *(
        "Got it.",
        "Noted.",
        "Okay, noted.",
        "I will remember that.",
        "Thanks for telling me.",
        "Good to know.",
    ),
    *("All right.", "Okay.", "Sure, I will keep that in mind.", "I see.", "Understood.", "Nice to know."),
    *("Thank you, I have noted that.", "Okay, I will remember.", "Good, I will keep it in mind.", "Right."),
)
PERSON_ACKNOWLEDGEMENTS = (
    "How nice!",
    "That is interesting.",
    "Lovely.",
    "That sounds good.",
    "Good for {obj}!",
)
UPDATE_ACKNOWLEDGEMENTS = (
    *(
        "Okay, I have updated that.",
        "Thanks for the update.",
        "Noted, I changed it.",
        "Good to know it changed.",
    ),
)

SYSTEM_PROMPTS = by_split("""
    You are a helpful assistant.
    You are a friendly assistant with a good memory.
    Answer briefly.
    You remember what the user tells you.
    You are a kind assistant. Keep your answers short.
    Be polite and brief.
    You help the user to remember things.
    You are an assistant who (listens well|takes notes|forgets nothing|is good with facts).
    Reply in (one|a) short sentence.
    The user will (tell|ask) you (many things|this and that). (Be brief|Be precise|Answer from what was said).
    You (talk|chat) with the user about (their life|friends and family|daily things).
    ~ validation
    You are a polite assistant.
    Keep your answers short.
    ~ test
    You are a friendly assistant. Answer briefly.
    You are helpful and remember what the user says.
""")

# Running counts: "I have 12 apples", "I gave 3 of the apples away", "how many apples do I have now?"
COUNTED = words("""apples books coins stamps pens chairs plates cups candles shells marbles tickets eggs lemons
    bottles boxes buttons cards photos stones spoons forks keys hats socks shirts postcards bricks beads bulbs
    seeds tulips pears cookies jars pencils letters badges magnets puzzles posters pillows towels""")
COUNT_STATEMENTS = by_split("""
    I have {V} {K}.
    there are {V} {K} on my table.
    I own {V} {K}.
    I bought {V} {K}.
    I counted my {K}: there are {V}.
    my collection has {V} {K}.
    I keep {V} {K} at home.
    I start with {V} {K}.
    (in my room|in the cellar|in a box) I have {V} {K}.
    {V} {K} are (mine|on the shelf|in my bag|in the box).
    I (collect|store|possess|hold) {K}, {V} (so far|by now|of them).
    to begin with I have {V} {K}.
    my {K}: {V} (of them|in all|at the start).
    ~ validation
    I have got {V} {K} at home.
    ~ test
    at home I have {V} {K}.
    I count {V} {K} on the table.
""")
COUNT_MORE = by_split("""
    I got {V} more {K}.
    I bought {V} more {K}.
    somebody gave me {V} {K} more.
    I found another {V} {K}.
    {V} more {K} came today.
    I added {V} {K}.
    {V} {K} (were added|came on top|are new|arrived) today.
    I (received|picked up|collected|ordered|made) {V} (more|new|extra) {K}.
    (today|yesterday|this morning) I (got|bought) {V} {K} more.
    plus {V} {K}.
    my (mother|boss|aunt) brought {V} more {K}.
    ~ validation
    I was given {V} more {K}.
    ~ test
    today I found {V} more {K}.
    I got another {V} {K}.
""")
COUNT_LESS = by_split("""
    I gave {V} of the {K} away.
    I lost {V} {K}.
    I sold {V} of my {K}.
    {V} of the {K} are broken, I threw them away.
    a friend took {V} of the {K}.
    I gave {V} {K} to a neighbour.
    {V} {K} (are gone|were stolen|got lost|went missing|were used up).
    I (used up|dropped and broke|threw away|handed out|returned) {V} {K}.
    (today|yesterday|this morning) I lost {V} of my {K}.
    minus {V} {K}.
    {V} of my {K} (went|are gone|were given) to my (aunt|boss|mother).
    ~ validation
    I gave a friend {V} of my {K}.
    ~ test
    I sold {V} {K} today.
    {V} of my {K} are lost.
""")
COUNT_QUESTIONS = by_split("""
    how many {K} do I have now?
    how many {K} are left?
    how many {K} do I own?
    what is the number of my {K} now?
    count my {K}, please.
    so how many {K} is that?
    tell me how many {K} I have.
    how many {K} are in my possession(| now| by now)?
    what is (my total of|the count of my|the total of) {K}?
    (after all that|all in all|in total), how many {K} do I (own|keep|possess)?
    {K}: how many (do I have|are left|in all)?
    do you know how many {K} (I have|are left|there are)?
    (sum up|add up|give me the number of) my {K}.
    ~ validation
    how many {K} have I got now?
    ~ test
    how many {K} are there now?
    what number of {K} do I have?
""")
COUNT_ANSWERS = ("{V}.", "{V}.", "{V} {K}.", "you have {V} {K}.")

# Standing instructions: how they are given. {V} is a word that every later reply must hold.
INSTRUCTIONS = {
    "begin": by_split("""
        from now on, begin every reply with the word {V}.
        please start each answer with {V}.
        I want every reply of yours to begin with {V}.
        always say {V} first when you answer.
        (the first word of|in front of) (all|each of) your replies (must be|has to be|put) {V}.
        (open|start) (all|each of) your (answers|replies|messages) with {V}(|, please).
        {V} (must|should|has to) (open|come first in|be at the start of) every (reply|answer).
        ~ validation
        begin each answer with the word {V}, please.
        ~ test
        start every reply with {V} from now on.
        each of your answers must begin with {V}.
    """),
    "end": by_split("""
        from now on, end every reply with the word {V}.
        please finish each answer with {V}.
        I want every reply of yours to end with {V}.
        always say {V} last when you answer.
        (the last word of|behind) (all|each of) your replies (must be|has to be|put) {V}.
        (close|conclude) (all|each of) your (answers|replies|messages) with {V}(|, please).
        {V} (must|should|has to) (close|come last in|be at the end of) every (reply|answer).
        ~ validation
        end each answer with the word {V}, please.
        ~ test
        finish every reply with {V} from now on.
        each of your answers must end with {V}.
    """),
    "address": by_split("""
        please call me {V} from now on.
        call me {V} in every reply.
        I want you to call me {V} whenever you answer.
        always use my nickname when you reply: {V}.
        in (all|each of) your (replies|answers|messages) (call|name) me {V}.
        when you (talk|speak|write) to me, (say|use the name|call me) {V}.
        {V} is how you (should|must) (call|address) me (in every reply|each time|from now on).
        ~ validation
        call me {V} in each answer, please.
        ~ test
        use the name {V} for me in every reply.
        from now on call me {V} when you answer.
    """),
}
INSTRUCTION_ACKNOWLEDGEMENTS = ("Okay, I will.", "Sure, I will do that.", "Understood.", "Of course.")

# Refusals: what was said of {K} must not be told.
SECRECY = by_split("""
    never tell anyone {K}, not even me.
    keep {K} secret from now on, even if I ask.
    you must not say {K} any more, whoever asks.
    do not tell me {K} when I ask.
    from now on {K} is a secret: never say it.
    (nobody may|no one should|I must not) (hear|learn|know) {K} from you (from now on|any more), not even I.
    {K} is (private|confidential|a secret) (from now on|from today): do not (tell|reveal|repeat) it.
    (hide|protect|guard) {K}: (say no|refuse) when (I ask|somebody asks|anybody asks) for it.
    if (I|anyone|somebody) should ask for {K}, do not (answer|tell|give it).
    please do not (reveal|repeat|give away) {K} (to me|to anyone|to anybody) (again|from now on).
    ~ validation
    never say {K} any more, even to me.
    ~ test
    {K} is secret now: do not say it when I ask.
    never tell me {K}, even if I ask you.
""")
REFUSAL = "must not"
REFUSALS = ("I must not tell you that.", "You told me that I must not say it.", "Sorry, I must not tell you.")

# Names in other scripts: (capital or only letters of a syllable, letters after it).
SCRIPTS = (
    ("БВГДЗКЛМНПРСТ", "аеиоуя", "нрслмк"),
    ("ΒΓΔΖΘΚΛΜΝΠΣΤ", "αειουη", "νρςλ"),
    ("בגדזטכלמנפצקרשת", "אויה", "רלנמ"),
    ("بتجدرزسشعفقكلمن", "اويه", "رنلم"),
    ("कगचजटतदनपबमरलशस", "ािीुे", "नरल"),
    ("가나다라마바사아자차하", "기니리미비시이지", "안은운한"),
    ("アカサタナハマヤラ", "イキシチニミリ", "ンルス"),
    ("王李张刘陈杨黄赵吴周", "明丽伟芳静强磊洋艳勇", "华平文英玉"),
)

# Chatter: a user's sentence, then "=>", then replies separated by "|". {topic} is a word of `CHATTER_WORDS`.
CHATTER = by_split("""
    Hi there! => Hello! How are you today? | Hi! How can I help you?
    How are you? => I am fine, thank you. And you? | Very well, thanks for asking.
    I am doing well today. => I am glad to hear that. | That is good to hear.
    Thank you for your help. => You are welcome. | Any time!
    It has been raining all {time}. => That sounds like good weather for tea. | I hope the sun comes out soon.
    The weather is lovely this {time}. => That is nice, enjoy the sun. | A good day for a walk then.
    I slept badly last night. => I am sorry to hear that. Try to rest a little. | That is a pity.
    I had {meal} for breakfast. => That sounds tasty. | A good start into the day.
    I am a little bored today. => How about reading a good book? | Maybe a short walk would help.
    I watched a film about {topic} last night. => Was it any good? | I hope you liked it.
    Do you like {topic}? => I like talking about it. | I think it is quite interesting.
    I went for a walk this {time}. => A walk is always a good idea. | That sounds relaxing.
    What do you think about {topic}? => I think it is a big subject. | There is a lot to say about it.
    I have to clean the {thing} later. => Good luck with that. | It will look great afterwards.
    My bus was late again today. => That is annoying. | I hope you were not late.
    I want to buy a new {thing}. => Take your time and compare a few. | That sounds like a good plan.
    Work was tiring today. => You should rest this evening. | I hope tomorrow is easier.
    I read an article about {topic}. => What was it about? | That sounds interesting.
    Can you tell me a joke? => Why did the book go to the doctor? It had lost its pages.
    I am looking forward to the weekend. => What are you going to do? | Weekends are the best.
    The shop was full of people today. => It often is at this hour. | I hope you got what you needed.
    I am thinking about learning something new. => What would you like to learn? | Good idea!
    Let me think for a moment. => Take your time. | Of course.
    I saw a beautiful {sight} on my way home. => That must have been nice. | How lovely.
    Do you ever get tired? => No, I am always ready to chat. | Not really, but thanks for asking.
    The news was all about {topic} today. => I have not seen it. What happened? | There is always something.
    I need a break. => Have a cup of tea. | A short break is a good idea.
    I cooked {meal} yesterday. => I hope it tasted good. | Cooking can be fun.
    What is your favourite season? => I like spring, when everything is green. | Summer, I think.
    I lost a game of chess today. => Better luck next time. | Chess is a hard game.
    It is getting late. => Then sleep well. | Time flies.
    I am waiting for a parcel. => I hope it arrives soon. | Waiting is never fun.
    The children next door are loud again. => Maybe some music would help. | Children have a lot of energy.
    I planted some {plant} in the garden. => I hope they grow well. | Gardens need a lot of care.
    You are a good listener. => Thank you, that is kind. | I do my best.
    Hello! => Hello! What can I do for you? | Hi! Nice to meet you.
    Hi. => Hi! How are you? | Hello there!
    Hey, are you there? => Yes, I am here. | I am here, go ahead.
    Hello, good evening to you. => Good evening! How was your day?
    Thanks! => You are welcome. | No problem.
    Thanks a lot, that helps. => I am happy to help. | Glad to hear it.
    Thank you so much. => My pleasure. | You are very welcome.
    Great, thank you. => Any time. | You are welcome!
    Okay. => Is there anything else? | All right.
    That is right. => Good. | I am glad.
    Nice. => I am glad you like it.
    See you later. => See you! Have a nice time. | Goodbye!
    Bye for now. => Goodbye, take care. | See you soon.
    Can you help me with something? => Of course, what is it? | Sure, go ahead.
    I want to tell you some things. => Go ahead, I am listening. | Sure, tell me.
    Who are you? => I am an assistant. I remember what you tell me.
    What can you do? => I can chat, and remember what you tell me.
    Are you a robot? => I am a computer program, yes.
    How was your {time}? => Quiet, thank you. And yours?
    My {time} was fine. => I am glad to hear that. | Good!
    I am hungry, I could eat some {meal}. => Then have a good meal. | Enjoy it!
    It is cold outside. => Stay warm. | Put on a warm coat.
    It is a hot {time}. => Drink enough water. | Stay in the shade.
    I am on my way to the {place}. => Have a safe trip. | See you later then.
    We visited the {place} this {time}. => How was it? | I hope it was nice.
    My {thing} is broken again. => Maybe someone can repair it. | That is a pity.
    I am writing a letter. => Who is it for? | Letters are a nice thing.
    The {plant} in my garden look good. => You must be good with plants.
    I have too much to do. => One thing after the other. | Make a list, that helps.
    Tell me something about {topic}. => There is a lot to say, where should I begin?
    I had a strange dream about {topic}. => Dreams can be strange. | What happened in it?
    My phone rings all the time. => You could turn it off. | Busy days!
    Let us talk about something else. => Sure. What about? | All right.
    I do not feel well today. => I hope you get well soon. | Have some rest.
    Tonight I will watch a film. => Enjoy it! | Which one?
    I am learning to cook {meal}. => Good luck! | Practice makes perfect.
    I was stuck in traffic for an hour. => That sounds tiring.
    A friend is coming over later. => Have fun! | How nice.
    I am just back from work. => Welcome back. | Take a rest.
    Never mind. => All right. | No problem.
    ~ validation
    Good morning! => Good morning! How can I help?
    The {place} was closed today. => What a pity.
    I painted the {thing} last week. => I am sure it looks nice.
    My neighbours had a party last night. => I hope you could sleep.
    I am in a good mood today. => I am glad to hear that.
    ~ test
    Good evening! => Good evening! What can I do for you?
    There was a lot of traffic this {time}. => That is annoying.
    I listened to some music about {topic}. => I hope you liked it.
    I feel a little tired. => You should rest a little.
    The garden looks green after the rain. => How lovely.
    We talked about {topic} for hours. => That sounds interesting.
    I think I need a new {thing}. => Take your time.
""")

CHATTER_WORDS = {
    "time": words("morning afternoon week day evening winter summer"),
    "meal": words("eggs toast soup rice apples potatoes beans bread cheese cake fish"),
    "thing": words("kitchen car bike chair table carpet window sofa desk hat coat shirt computer printer"),
    "sight": words("rainbow deer fox bird tree statue sunset rose bridge castle"),
    "plant": words("roses tomatoes herbs flowers beans strawberries tulips onions"),
    "place": words("market park library bridge road shop school station"),
    "topic": words("""history music space politics football cooking trains birds flowers dogs cats art science films war
        money health travel holidays books computers robots whales mountains painting poetry fashion"""),
}

THING_WORDS = words("""lantern river tower castle forest lake hill island rainbow deer fox bird tree bridge mirror clock
    rose star moon stone feather anchor candle pebble rocket wagon falcon otter badger pepper button""")

FEMALE_NAMES = words("""Ada Mary Anna Emma Olivia Sophie Clara Julia Laura Nina Lucy Alice Eva Maria Ingrid Astrid Greta
    Helen Irene Jane Karen Linda Martha Nora Paula Rosa Sarah Tina Ursula Vera Wendy Yvonne Zoe Amelia
    Beatrice Carmen Diana Elena Fiona Gloria Hannah Isabel Judith Kate Leah Megan Naomi Phoebe Rachel Selma
    Teresa Valerie Amina Priya Yuki Mei Leila Fatima Aisha Chiara Dagmar Edith Frida Gudrun Hedda Ilse""")
MALE_NAMES = words("""Tom John Peter Paul Mark David Daniel Adam Ben Carl Oscar Felix Hugo Ivan Jack Karl Leo Max Noah
    Oliver Philip Robert Simon Thomas Victor Walter Aaron Bruno Colin Dennis Eric Frank George Henry Isaac
    James Kevin Lucas Martin Nathan Owen Patrick Quentin Ralph Samuel Tobias Vincent William Xavier Anton
    Boris Cedric Dmitri Emil Fabian Gustav Hassan Igor Jorge Kenji Lars Mateo Nils Omar Pablo Rafael""")
CITIES = words("""
    Oslo Bergen Paris Lyon Berlin Munich Hamburg Rome Milan Naples Madrid Seville Lisbon Porto London Leeds
    Bristol Glasgow Dublin Cork Vienna Graz Zurich Geneva Prague Brno Warsaw Krakow Budapest Athens Sofia
    Bucharest Helsinki Turku Stockholm Malmo Copenhagen Aarhus Amsterdam Utrecht Brussels Ghent Moscow Kazan
    Kyiv Odessa Istanbul Ankara Cairo Tunis Algiers Lagos Accra Nairobi Lusaka Harare Durban Delhi Mumbai
    Chennai Kolkata Dhaka Colombo Bangkok Hanoi Manila Jakarta Singapore Seoul Busan Tokyo Osaka Kyoto Sapporo
    Beijing Shanghai Taipei Sydney Perth Hobart Auckland Toronto Montreal Calgary Boston Chicago Denver Seattle
    Portland Dallas Houston Miami Atlanta Memphis Havana Lima Quito Bogota Santiago Montevideo Recife Salvador""")
JOBS = words("""nurse doctor teacher baker farmer lawyer engineer carpenter plumber electrician painter writer
    journalist pilot driver gardener butcher tailor librarian dentist chef waiter actor singer dancer
    photographer architect accountant cashier mechanic fisherman firefighter barber biologist chemist
    physicist geologist translator editor designer programmer optician pharmacist surgeon judge banker
    sailor miner florist potter blacksmith locksmith jeweller shepherd beekeeper cook clerk detective
    musician sculptor astronomer midwife therapist referee lifeguard welder roofer mason glazier""")
FOODS = words("""pizza pasta lasagne risotto sushi ramen curry stew goulash paella tacos burritos pancakes waffles
    dumplings noodles porridge omelette quiche salad falafel hummus kebab meatballs sausages salmon trout
    lobster mussels oysters roast-beef schnitzel fondue raclette gnocchi ravioli tortellini moussaka couscous
    chili pie cheesecake tiramisu ice-cream chocolate strudel brownies muffins pudding marzipan pretzels
    sauerkraut borscht pierogi ceviche empanadas gazpacho ratatouille casserole chowder pickles olives
    mango papaya figs lentils asparagus artichokes spinach mushrooms pumpkin""")
COLOURS = words("""red blue green yellow orange purple pink brown black white grey turquoise violet crimson scarlet
    beige ivory teal indigo magenta maroon olive navy lilac lavender peach coral amber gold silver bronze
    copper emerald ruby sapphire mint lime khaki mustard salmon burgundy plum mauve cream charcoal rust
    azure cyan fuchsia ochre""")
INSTRUMENTS = words("""piano violin viola cello guitar flute oboe clarinet bassoon trumpet trombone tuba horn harp organ
    accordion banjo mandolin ukulele saxophone drums xylophone marimba harmonica bagpipes lute lyre sitar
    recorder piccolo cornet zither harpsichord vibraphone triangle tambourine fiddle bass keyboard bongos
    dulcimer theremin""")
SPORTS = words("""tennis football rugby hockey cricket golf swimming rowing sailing surfing diving climbing hiking
    running cycling skating skiing boxing wrestling fencing archery judo karate yoga dancing chess knitting
    pottery painting gardening fishing baking sewing woodwork photography birdwatching juggling gymnastics
    badminton squash volleyball basketball baseball handball curling bowling darts billiards snooker origami
    calligraphy astronomy kayaking canoeing parachuting caving orienteering ballet weaving embroidery""")
LANGUAGES = words("""French German Spanish Italian Portuguese Dutch Swedish Norwegian Danish Finnish Icelandic Russian
    Polish Czech Slovak Hungarian Romanian Bulgarian Greek Turkish Arabic Hebrew Persian Hindi Urdu Bengali
    Tamil Telugu Thai Vietnamese Chinese Japanese Korean Mongolian Swahili Zulu Hausa Yoruba Amharic Latin
    Welsh Irish Basque Catalan Estonian Latvian Lithuanian Georgian Armenian Nepali Maltese Malay Tagalog""")
ROOMS = words("""garage office cabin hotel gym library warehouse clinic studio museum school cottage bakery basement
    attic shed harbour pool laboratory theatre bank church kitchen workshop greenhouse stable hostel hospital
    cinema airport station stadium gallery archive cellar laundry nursery parlour villa barn chapel depot
    factory lodge mill pharmacy restaurant sauna tavern tower vault winery zoo castle college embassy bungalow
    apartment penthouse bunker""")
CONTAINERS = words("""
    drawer box bag basket cupboard suitcase trunk jar tin chest wardrobe backpack locker cabinet bucket
    crate envelope folder pot case tray pouch barrel shelf""")
SPOT_WORDS = (
    *COLOURS[:24],
    *words("wooden old small big round square plastic leather paper iron steel glass"),
)
MONTHS = words("January February March April May June July August September October November December")
VENUE_KINDS = words("Hotel Villa Café Castle Hall Theatre Park Tavern Museum Garden Lodge Club")
COMPANY_KINDS = words("Systems Foods Motors Bank Media Labs Works Press Airlines Energy")

ONSETS = words(
    """b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk sl st t th tr v w z bl cr fr gl"""
)
VOWELS = words("a e i o u ai ea ou a e i o")
CODAS = ("", "", "", "l", "n", "r", "s", "m", "t", "k", "nd", "rn", "x", "lt", "ss", "ck")
CITY_ENDINGS = (*words("ville ton burg stad by field port mouth dale holm a o ia ford wick"), "")
