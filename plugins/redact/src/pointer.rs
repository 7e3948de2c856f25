//! JSON pointers (RFC 6901), and a step of our own: `*` is every member and every element; and all of an
//! operator's pointers in a form in which a name is looked up once. Knows nothing of JSON texts.

use std::cmp::Ordering;

/// Some of the pointers: for each a bit, by its place in the list.
pub(crate) type Set = u128;

/// As many as a [`Set`] holds.
const MAX_POINTERS: usize = Set::BITS as usize;

/// Where in a document values are.
#[derive(Debug)]
pub(crate) struct Pointer(Vec<Step>);

/// From a value to one of those in it.
#[derive(Debug)]
enum Step {
    Every,
    One {
        /// Of a member.
        name: String,
        /// Of an element, if the name is a number as the RFC writes it: without sign and leading zeros.
        index: Option<usize>,
    },
}

impl Pointer {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut tokens = text.split('/');
        if tokens.next() != Some("") {
            return Err("a pointer is empty or begins with \"/\"");
        }
        tokens.map(step).collect::<Result<_, _>>().map(Self)
    }

    /// It leads to the document itself.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.is_empty()
    }
}

fn step(token: &str) -> Result<Step, &'static str> {
    if token == "*" {
        return Ok(Step::Every);
    }
    let mut parts = token.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = match part.as_bytes().first() {
            Some(b'0') => ('~', &part[1..]),
            Some(b'1') => ('/', &part[1..]),
            _ => return Err("\"~\" is written \"~0\", and \"/\" in a name \"~1\""),
        };
        name.push(escaped);
        name.push_str(rest);
    }
    let is_number = name == "0" || !name.starts_with(['0', '+']);
    let index = name.parse().ok().filter(|_| is_number);
    Ok(Step::One { name, index })
}

/// All pointers, step by step.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    all: Set,
    /// By the number of steps that have led there. One more than the longest pointer has steps.
    levels: Vec<Level>,
}

/// What a value, a name or the number of an element means to each pointer.
#[derive(Debug, Default)]
pub(crate) struct Level {
    /// Those that end here.
    found: Set,
    /// Those that go on whatever comes.
    every: Set,
    /// All in `names`, and all in `indices`.
    named: Set,
    numbered: Set,
    /// For each length of a name a bit; the highest is for all that are longer.
    lengths: u64,
    longest: usize,
    /// Those that go on with a name, in the order of [`by_length`].
    names: Vec<(String, Set)>,
    /// Those that go on with an element, by its number.
    indices: Vec<(usize, Set)>,
}

impl Pointers {
    /// An error is for the operator: there are too many.
    pub(crate) fn new(pointers: &[Pointer]) -> Result<Self, String> {
        if pointers.len() > MAX_POINTERS {
            let n = pointers.len();
            return Err(format!("{n} are not allowed: 1 to {MAX_POINTERS}"));
        }
        let mut all = Self {
            all: 0,
            levels: vec![Level::default()],
        };
        for (n, pointer) in pointers.iter().enumerate() {
            all.add(pointer, 1 << n);
        }
        Ok(all)
    }

    fn add(&mut self, pointer: &Pointer, own: Set) {
        self.all |= own;
        let depth = pointer.0.len();
        let n_levels = self.levels.len().max(depth + 1);
        self.levels.resize_with(n_levels, Level::default);
        self.levels[depth].found |= own;
        for (level, step) in self.levels.iter_mut().zip(&pointer.0) {
            match step {
                Step::Every => level.every |= own,
                Step::One { name, index } => {
                    level.named |= own;
                    level.lengths |= length_bit(name.len());
                    level.longest = level.longest.max(name.len());
                    match (level.names).binary_search_by(|(known, _)| by_length(known, name)) {
                        Ok(place) => level.names[place].1 |= own,
                        Err(place) => level.names.insert(place, (name.clone(), own)),
                    }
                    let Some(index) = *index else { continue };
                    level.numbered |= own;
                    match (level.indices).binary_search_by_key(&index, |(known, _)| *known) {
                        Ok(place) => level.indices[place].1 |= own,
                        Err(place) => level.indices.insert(place, (index, own)),
                    }
                }
            }
        }
    }

    pub(crate) fn all(&self) -> Set {
        self.all
    }

    /// What comes after so many steps.
    #[inline(always)]
    pub(crate) fn level(&self, n_steps: usize) -> &Level {
        const NONE: &Level = &Level {
            found: 0,
            every: 0,
            named: 0,
            numbered: 0,
            lengths: 0,
            longest: 0,
            names: Vec::new(),
            indices: Vec::new(),
        };
        self.levels.get(n_steps).unwrap_or(NONE)
    }
}

impl Level {
    /// Whether one of `into` ends here.
    #[inline(always)]
    pub(crate) fn is_found(&self, into: Set) -> bool {
        self.found & into != 0
    }

    /// Whether one of `into` leads on to members.
    #[inline(always)]
    pub(crate) fn is_about_members(&self, into: Set) -> bool {
        (self.every | self.named) & into != 0
    }

    /// Whether one of `into` leads on to elements.
    #[inline(always)]
    pub(crate) fn is_about_elements(&self, into: Set) -> bool {
        (self.every | self.numbered) & into != 0
    }

    /// How long the longest name is.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Those whose next step is this member. None: it has a name that no pointer has.
    #[inline(always)]
    pub(crate) fn at_member(&self, name: Option<&[u8]>) -> Set {
        match name {
            Some(name) if self.lengths & length_bit(name.len()) != 0 => {
                self.every | self.with_name(name)
            }
            _ => self.every,
        }
    }

    fn with_name(&self, name: &[u8]) -> Set {
        let place = (self.names).binary_search_by(|(known, _)| by_length(known, name));
        place.map_or(0, |place| self.names[place].1)
    }

    /// Those whose next step is this element.
    #[inline(always)]
    pub(crate) fn at_element(&self, index: usize) -> Set {
        if self.numbered == 0 {
            return self.every;
        }
        let place = (self.indices).binary_search_by_key(&index, |(known, _)| *known);
        self.every | place.map_or(0, |place| self.indices[place].1)
    }
}

#[inline(always)]
fn length_bit(len: usize) -> u64 {
    1 << len.min(63)
}

/// Most names are told apart by their lengths.
fn by_length(known: &str, name: impl AsRef<[u8]>) -> Ordering {
    let (known, name) = (known.as_bytes(), name.as_ref());
    known.len().cmp(&name.len()).then_with(|| known.cmp(name))
}
