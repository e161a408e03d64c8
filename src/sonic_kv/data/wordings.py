"""The wordings and word lists of the synthetic dialogues: data only.

A block holds one wording a line; `~ validation` and `~ test` start the wordings kept for those splits,
so that no split shares a wording with another. Placeholders:

    {S} {P}   the person as subject and as possessor: "my sister Ada", "Ada's", "I", "my", "she", "her"
    {he} {his}  pronouns of that person
    <a/b>     a for a third person, b for "I" and "you"
    {K}       the thing asked about: "the door code of the garage"
    {V} {aV}  the value, and the value with its indefinite article
    {A}       a detail both statement and question name (the kind of pet, the kind of event)

Sentences start in lower case; the generator capitalises what opens a sentence.

For training each attribute also has names of its value ("{P} home town") and clauses ("where {S}
<lives/live>"), which frames turn into many more wordings; held-out wordings are left out of these.
"""

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
""")


@dataclass(frozen=True)
class Attribute:
    """Something a dialogue can state, change and ask: wordings by split, and the pool of its values.

    `subject` is what it is said of: a person, or a thing of the named pool (see `THINGS`). `composed`
    holds the training wordings made of frames, by sort.
    """

    name: str
    subject: str
    values: str
    statements: dict[str, tuple[str, ...]]
    updates: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]
    answers: tuple[str, ...]
    details: tuple[str, ...]
    composed: dict[str, tuple[str, ...]]

    def wordings(self, sort: str) -> dict[str, tuple[str, ...]]:
        """The written wordings by split: of "statement", "update" or "question"."""
        return {"statement": self.statements, "update": self.updates, "question": self.questions}[sort]


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
    written = {"statement": statements, "update": updates, "question": questions}
    by_sort = {sort: by_split(block) for sort, block in written.items()}
    frames = {"statement": STATEMENT_FRAMES, "update": UPDATE_FRAMES, "question": QUESTION_FRAMES}
    composed = {}
    for sort, own in frames.items():
        held_out = {*by_sort[sort]["validation"], *by_sort[sort]["test"]}
        pairs = [(frame, name) for frame in own for name in lines(names)]
        if sort == "question":
            pairs += [(frame, name) for frame in ASKING_FRAMES for name in (*lines(names), *lines(clauses))]
        made = (frame.replace("{N}", name).replace("{V}", named) for frame, name in pairs)
        composed[sort] = tuple(wording for wording in made if wording not in held_out)
    return Attribute(
        name,
        subject,
        values,
        by_sort["statement"],
        by_sort["update"],
        by_sort["question"],
        lines(answers),
        words(details),
        composed,
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
        """,
        clauses="""
            where {S} <was/was> born
            where {S} grew up
            which town {S} <comes/come> from
            in which place {S} spent {his} childhood
            where {S} <is/am> from originally
            what place {S} grew up in
            where {S} <was/was> a child
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
        """,
        clauses="""
            what {S} <works/work> as
            what {S} <does/do> for a living
            how {S} <earns/earn> {his} money
            what {P} work is
            which job {S} <has/have>
            what {S} <is/am> by trade
            what sort of work {S} <does/do>
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
        """,
        clauses="""
            who {S} <works/work> for
            where {S} <works/work>
            which company {S} <works/work> at
            who employs {S_obj}
            at what company {S} <has/have> a job
            what {P} company is called
            who pays {S_obj}
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
        """,
        clauses="""
            what {S} <likes/like> to eat
            what {S} <loves/love> eating
            which dish {S} <likes/like> best
            what food {S} <likes/like> most
            what to cook for {S_obj}
            what {P} favourite dish is
            which meal {S} <likes/like> most
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
        """,
        clauses="""
            which colour {S} <likes/like>
            what colour {S} <loves/love>
            which colour {S} <prefers/prefer>
            what {P} favourite colour is
            which colour {S} <likes/like> best
            what colour {S} <likes/like> most
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
        """,
        clauses="""
            what {S} <plays/play>
            what instrument {S} <plays/play>
            which instrument {S} <is/am> learning
            what {P} instrument is
            which instrument {S} <practises/practise>
            what instrument {S} can play
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
        """,
        clauses="""
            what {S} <does/do> for fun
            what {S} <does/do> in {his} free time
            which hobby {S} <has/have>
            what sport {S} <likes/like>
            which sport {S} <does/do>
            how {S} <spends/spend> the weekend
            what {P} hobby is
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
            ~ validation
            {S} <has/have> {V} as a hobby.
            ~ test
            the sport {S} <likes/like> most is {V}.
            {P} main hobby is {V}.
            at the weekend {S} <does/do> {V}, {his} hobby.
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
        """,
        clauses="""
            which language {S} <speaks/speak>
            what language {S} <is/am> learning
            which language {S} <studies/study>
            what language {S} can speak
            which foreign language {S} <learns/learn>
            what language {S} <takes/take> lessons in
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
            ~ validation
            {S} <is/am> taking {V} lessons.
            ~ test
            {S} <has/have> lessons in {V}, a new language.
            {V} is the language {S} <is/am> learning.
            {S} <learns/learn> to speak {V}.
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
        """,
        clauses="""
            what {P} {A} is called
            what {S} <calls/call> {his} {A}
            how {S} named {his} {A}
            what the name of {P} {A} is
            which name {P} {A} has
            what name {S} chose for {his} {A}
            what {P} {A} is named
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
        """,
        clauses="""
            when {S} <was/was> born
            when {P} birthday is
            on which date {S} <was/was> born
            what day {P} birthday is
            when {S} <has/have> {his} birthday
            on what day {S} <celebrates/celebrate> {his} birthday
            what {P} date of birth is
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
        """,
        clauses="""
            what {K} is
            what {K} was
            what number {K} is
            what value {K} has
            what to use as {K}
            what I use as {K}
            how {K} goes
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
        """,
        clauses="""
            what {K} is
            what {K} was
            what I use as {K}
            what value {K} has
            what to use as {K}
            what I picked as {K}
            how {K} goes
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
        """,
        clauses="""
            where {K} is
            where {K} takes place
            where we have {K}
            which place we booked for {K}
            where to go for {K}
            at what place {K} is held
            where {K} will be
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
        """,
        clauses="""
            when {K} is
            when {K} starts
            at what time {K} begins
            what time {K} is
            when I have {K}
            what time {K} starts
            when to be ready for {K}
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
        """,
        clauses="""
            what {K} is called
            what we call {K}
            how we named {K}
            what the name of {K} is
            which name {K} has
            what name we chose for {K}
            what {K} is named
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
