//! A client of the store: random operations on a few keys, each told before it begins and after it has ended.

use std::sync::Arc;

use cox_store::{
    Attrs, CommitError, Durability, Indexer, Mutation, NewObject, Object, ObjectKey, Op,
    Precondition, Store,
};

/// Keys that clients fight for at a time.
pub const KEYS: usize = 4;

/// Finds nothing: selectors are not looked at here.
pub struct Plain;

impl Indexer for Plain {
    fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
        Attrs::default()
    }

    fn adopt(&self, _: &ObjectKey, value: &[u8]) -> Result<NewObject, String> {
        Ok(NewObject {
            json: value.to_vec(),
            revision_at: 1,
            attrs: Attrs::default(),
        })
    }
}

/// Numbers that a seed decides.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A seed for a run that was not given one.
pub fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

pub fn key(group: u64, at: usize) -> ObjectKey {
    ObjectKey::new("configmaps", format!("{group}/{at}"))
}

/// The number in an object, which must be whole.
pub fn value(object: &Object) -> u64 {
    let text = std::str::from_utf8(&object.json).expect("text");
    let mut words = text.splitn(3, ' ');
    let revision: u64 = words
        .next()
        .and_then(|word| word.trim_matches('"').parse().ok())
        .expect("a revision");
    assert_eq!(revision, object.revision.0, "{}", object.key);
    let value: u64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a number");
    let fill = words.next().expect("the rest").as_bytes();
    let letter = letter(value);
    assert!(
        fill.iter().all(|byte| *byte == letter),
        "{} is torn",
        object.key
    );
    value
}

fn letter(value: u64) -> u8 {
    b'a' + u8::try_from(value % 26).expect("below 26")
}

fn object(value: u64, len: usize) -> NewObject {
    let mut json = format!("\"\" {value} ").into_bytes();
    json.resize(json.len() + len, letter(value));
    NewObject {
        json,
        revision_at: 1,
        attrs: Attrs::default(),
    }
}

/// What a client tells. All lines of one operation begin with its number.
pub trait Tell: Send + Sync {
    fn tell(&self, line: String);
}

/// What a client is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub group: u64,
    /// Values and operations of this client begin here.
    pub base: u64,
    pub seed: u64,
    /// Operations; the process may be killed before.
    pub ops: u64,
    /// One in so many writes is of 1 MiB.
    pub large_one_in: u64,
}

/// Works through a plan. Ends early when the store refuses.
pub async fn run(store: Store, plan: Plan, tell: Arc<dyn Tell>) {
    let mut random = Random::new(plan.seed);
    for step in 0..plan.ops {
        let id = plan.base + step;
        let at = usize::try_from(random.below(KEYS as u64)).expect("few keys");
        let len = if random.below(plan.large_one_in) == 0 {
            1024 * 1024
        } else {
            200
        };
        let kind = random.below(10);
        let key = key(plan.group, at);
        let told = one(&store, &*tell, (id, at, kind), key, len).await;
        if told.is_err() {
            return;
        }
    }
}

/// One operation. `Err` when the store refuses all writes.
async fn one(
    store: &Store,
    tell: &dyn Tell,
    (id, at, kind): (u64, usize, u64),
    key: ObjectKey,
    len: usize,
) -> Result<(), ()> {
    if kind < 3 {
        tell.tell(format!("{id} read {at}"));
        if let Ok(snapshot) = store.current().await {
            let seen = snapshot.get(&key.resource, &key.path);
            let seen = seen.map_or("-".to_owned(), |object| value(&object).to_string());
            tell.tell(format!("{id} saw {seen}"));
        }
        return Ok(());
    }
    let known = store.snapshot().get(&key.resource, &key.path);
    let (word, precondition, op) = match (kind, &known) {
        (3 | 4, _) => (
            format!("put {id}"),
            Precondition::None,
            Op::Put(object(id, len)),
        ),
        (5, _) => ("delete".to_owned(), Precondition::None, Op::Delete),
        (6..=8, Some(known)) => (
            format!("swap {} {id}", value(known)),
            Precondition::Revision(known.revision),
            Op::Put(object(id, len)),
        ),
        _ => (
            format!("create {id}"),
            Precondition::Absent,
            Op::Put(object(id, len)),
        ),
    };
    tell.tell(format!("{id} {word} {at}"));
    let deletes = matches!(op, Op::Delete);
    let outcome = store
        .commit(Mutation {
            key,
            precondition,
            op,
            durability: Durability::Durable,
        })
        .await;
    match outcome {
        Ok(done) if deletes => tell.tell(format!("{id} deleted {}", value(&done.object))),
        Ok(_) => tell.tell(format!("{id} done")),
        Err(CommitError::Exists(object) | CommitError::Conflict(object)) => {
            tell.tell(format!("{id} saw {}", value(&object)));
        }
        Err(CommitError::NotFound(_)) => tell.tell(format!("{id} saw -")),
        Err(CommitError::Unavailable(_)) => tell.tell(format!("{id} refused")),
        // Nobody knows: it is told nothing more of.
        Err(CommitError::Unknown(_)) => {}
        Err(CommitError::Io(_) | CommitError::Closed) => return Err(()),
        Err(error @ CommitError::Malformed { .. }) => panic!("{error}"),
    }
    Ok(())
}
