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
"""

from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


def by_split(block: str) -> dict[str, tuple[str, ...]]:
    """Wordings of a block by split."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    split = "train"
    for line in filter(None, map(str.strip, block.splitlines())):
        if line.startswith("~"):
            split = line[1:].strip()
        else:
            found[split].append(line)
    return {split: tuple(lines) for split, lines in found.items()}


def words(block: str) -> tuple[str, ...]:
    """The words of a block."""
    return tuple(block.split())


@dataclass(frozen=True)
class Attribute:
    """Something a dialogue can state, change and ask: wordings by split, and the pool of its values.

    `subject` is what it is said of: a person, or a thing of the named pool (see `THINGS`).
    """

    name: str
    subject: str
    values: str
    statements: dict[str, tuple[str, ...]]
    updates: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[str, ...]]
    answers: tuple[str, ...]
    details: tuple[str, ...] = ()


def attribute(
    name: str,
    subject: str,
    values: str,
    *,
    statements: str,
    questions: str,
    answers: str,
    updates: str = "",
    details: str = "",
) -> Attribute:
    """An `Attribute` from its blocks."""
    return Attribute(
        name,
        subject,
        values,
        by_split(statements),
        by_split(updates),
        by_split(questions),
        tuple(filter(None, map(str.strip, answers.splitlines()))),
        words(details),
    )


ATTRIBUTES: tuple[Attribute, ...] = (
    attribute(
        "city",
        "person",
        "places",
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
        statements="""
            {S} <was/was> born in {V}.
            {S} grew up in {V}.
            {S} originally <comes/come> from {V}.
            {P} birthplace is {V}.
            {S} spent {his} childhood in {V}.
            {P} parents had {his} first home in {V}, and {he} grew up there.
            {V} is where {S} grew up.
            {S} went to school in {V} as a child.
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
        statements="""
            {S} <works/work> for {V}.
            {S} <works/work> at {V}.
            {S} <is/am> employed by {V}.
            {P} employer is {V}.
            {S} <has/have> a job at a company called {V}.
            the company {S} <works/work> for is {V}.
            {S} <has/have> worked at {V} for a while.
            {V} is the company where {S} <works/work>.
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
        statements="""
            {P} favourite food is {V}.
            {S} <loves/love> eating {V}.
            {S} could eat {V} every day.
            the food {S} <likes/like> most is {V}.
            {S} always <orders/order> {V} when eating out.
            {P} favourite dish is {V}.
            of all dishes {S} <likes/like> {V} best.
            nothing tastes better to {S_obj} than {V}.
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
        statements="""
            {P} favourite colour is {V}.
            {S} <likes/like> the colour {V} best.
            the colour {S} <loves/love> is {V}.
            {S} <wants/want> everything in {V}, {his} favourite colour.
            of all colours {S} <likes/like> {V} most.
            {S} <wears/wear> {V} all the time, it is {his} favourite colour.
            {S} painted {his} room {V} because it is {his} favourite colour.
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
        statements="""
            {S} <plays/play> the {V}.
            {S} <is/am> learning to play the {V}.
            {S} <plays/play> the {V} in a band.
            {P} instrument is the {V}.
            {S} <practises/practise> the {V} every evening.
            {S} <has/have> played the {V} since school.
            the instrument {S} <plays/play> is the {V}.
            {S} <takes/take> lessons on the {V}.
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
        statements="""
            {P} favourite sport is {V}.
            {S} <spends/spend> every weekend on {V}.
            {S} <is/am> mad about {V}.
            {S} <does/do> {V} as a hobby.
            {P} hobby is {V}.
            {S} <took/took> up {V} a few years ago.
            the hobby {S} <likes/like> most is {V}.
            in {his} free time {S} <does/do> a lot of {V}.
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
        statements="""
            {S} <is/am> learning {V}.
            {S} <speaks/speak> {V} at home.
            {S} <takes/take> {V} lessons.
            {S} <studies/study> {V} in the evening.
            the language {S} <is/am> learning is {V}.
            {S} <wants/want> to speak {V} well.
            {S} <speaks/speak> some {V}.
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
        statements="""
            {S} <has/have> a {A} called {V}.
            {S} <has/have> a {A} named {V}.
            {P} {A} is called {V}.
            {P} {A} is named {V}.
            the name of {P} {A} is {V}.
            {S} just got a {A} and named it {V}.
            {P} little {A} goes by the name of {V}.
            {S} <keeps/keep> a {A}, its name is {V}.
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
        statements="""
            {P} birthday is on {V}.
            {S} <has/have> {his} birthday on {V}.
            {S} <was/was> born on {V}.
            {S} <celebrates/celebrate> {his} birthday on {V}.
            the date of {P} birthday is {V}.
            we celebrate {P} birthday on {V}.
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
        statements="""
            {K} is {V}.
            {K} was set to {V}.
            please remember that {K} is {V}.
            here is {K}: {V}.
            I picked {V} as {K}.
            note that {K} is {V}.
            they told me {K}, it is {V}.
            I chose {K} myself: {V}.
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
        statements="""
            {K} is in {V}.
            I put {K} in {V}.
            I left {K} in {V}.
            you can find {K} in {V}.
            I keep {K} in {V}.
            {K} is lying in {V}.
            I have placed {K} in {V}.
            if you look for {K}, it is in {V}.
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
        statements="""
            {K} is at {V}.
            {K} will be held at {V}.
            {K} takes place at {V}.
            we booked {V} for {K}.
            {K} will be at {V}.
            we are having {K} at {V}.
            the place for {K} is {V}.
            they chose {V} for {K}.
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
        statements="""
            {K} is at {V}.
            {K} starts at {V}.
            {K} begins at {V}.
            {K} was set for {V}.
            I have {K} at {V}.
            the time of {K} is {V}.
            please remember {K} at {V}.
            {K} is planned for {V}.
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
        statements="""
            {K} is called {V}.
            {K} is named {V}.
            the name of {K} is {V}.
            we named {K} {V}.
            {K} goes by the name of {V}.
            we chose {V} as the name of {K}.
            we call {K} {V}.
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
