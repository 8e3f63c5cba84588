//! Where a key lives: a ring of points or a Maglev lookup table. Both depend on the endpoints' keys
//! and weights alone, so that all callers that know the same endpoints agree.

use super::settings::Algorithm;

/// Most points on a ring: 256 KiB.
const MOST_POINTS: usize = 32_768;
/// Low bits of a point, which hold the endpoint's position.
const POSITION: u64 = (1 << 24) - 1;
/// Sizes of a Maglev table, all prime, 4 bytes a slot. The first with 100 slots an endpoint is taken,
/// which keeps shares within 1 % of each other (section 5.3 of the paper).
const TABLE_SIZES: [usize; 3] = [4_099, 16_411, 65_537];
/// Places looked at from a key's own before [`rendezvous`] decides: its cost has a bound, where one
/// lap of a ring of which most endpoints are out has none to speak of.
const WALK: usize = 32;

/// One endpoint of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    /// Names it, everywhere alike.
    pub(super) key: &'a str,
    /// Its weight, 1 to 1000.
    pub(super) weight: u32,
}

/// The compiled form of one hash algorithm over one set of endpoints.
#[derive(Debug)]
pub(super) struct Table {
    places: Places,
    /// Of what it was made.
    fingerprint: u64,
}

#[derive(Debug)]
enum Places {
    /// Hash above, position below; sorted.
    Ring(Box<[u64]>),
    /// Position by slot.
    Maglev(Box<[u32]>),
}

impl Table {
    /// The table of `algorithm`, if it has one.
    pub(super) fn new(algorithm: Algorithm, members: &[Member<'_>]) -> Option<Self> {
        if members.is_empty() {
            return None;
        }
        let places = match algorithm {
            Algorithm::RingHash => Places::Ring(ring(members)),
            Algorithm::Maglev => Places::Maglev(maglev(members)),
            Algorithm::PeakEwma | Algorithm::LeastRequest | Algorithm::RoundRobin => return None,
        };
        Some(Self { places, fingerprint: fingerprint(members) })
    }

    /// Whether [`Table::new`] would make the same again.
    pub(super) fn is_of(&self, algorithm: Algorithm, members: &[Member<'_>]) -> bool {
        let same_kind = match self.places {
            Places::Ring(_) => algorithm == Algorithm::RingHash,
            Places::Maglev(_) => algorithm == Algorithm::Maglev,
        };
        same_kind && self.fingerprint == fingerprint(members)
    }

    /// Positions of endpoints in the order in which they are asked to take `key`; an endpoint may come
    /// more than once, or not at all: it ends after a bounded number of places.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let key = mix(key);
        let (length, start) = match &self.places {
            Places::Ring(points) => {
                (points.len(), points.partition_point(|point| point & !POSITION < key & !POSITION))
            }
            Places::Maglev(slots) => (slots.len(), (key % slots.len() as u64) as usize),
        };
        (0..length.min(WALK)).map(move |step| match &self.places {
            Places::Ring(points) => (points[(start + step) % length] & POSITION) as usize,
            Places::Maglev(slots) => slots[(start + step) % length] as usize,
        })
    }
}

/// The hash of an endpoint's key: the same on every machine and in every version.
///
/// Source: FNV-1a (Fowler, Noll, Vo), mixed for its weak high bits.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let folded = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(folded)
}

/// How well an endpoint suits a key: the highest wins, and shares follow the weights.
///
/// Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN
/// 1998; with weights by an exponential variable of that rate for each endpoint.
pub(super) fn rendezvous(key: u64, member: Member<'_>) -> f64 {
    let bits = mix(key ^ hash(member.key.as_bytes())) >> 11;
    // Between 0 and 1, neither included.
    let uniform = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(member.weight) / uniform.ln()
}

/// Ring of points, one for each unit of weight unless that makes too many.
///
/// Source: Karger et al., "Consistent Hashing and Random Trees", STOC 1997; ketama for the weights.
fn ring(members: &[Member<'_>]) -> Box<[u64]> {
    let count = |weight: u32, halvings: u32| ((weight + ((1 << halvings) >> 1)) >> halvings).max(1);
    // By halves, so that the ring of a growing service seldom changes as a whole.
    let halvings = (0..10)
        .find(|&halvings| {
            members.iter().map(|member| count(member.weight, halvings) as usize).sum::<usize>() <= MOST_POINTS
        })
        .unwrap_or(10);
    let mut points: Vec<u64> = Vec::new();
    for (position, member) in members.iter().enumerate() {
        let seed = hash(member.key.as_bytes());
        for replica in 0..count(member.weight, halvings) {
            let point = mix(seed.wrapping_add(mix(u64::from(replica))));
            points.push(point & !POSITION | position as u64 & POSITION);
        }
    }
    points.sort_unstable();
    points.into()
}

/// Maglev's table: each endpoint in turn takes the next free slot of its own permutation, with turns
/// in proportion to the weights.
///
/// Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
/// section 3.4.
fn maglev(members: &[Member<'_>]) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    let wanted = members.len().saturating_mul(100);
    let size = TABLE_SIZES.into_iter().find(|&size| size >= wanted).unwrap_or(TABLE_SIZES[2]);
    let heaviest = u64::from(members.iter().map(|member| member.weight).max().unwrap_or(1).max(1));
    let mut turns: Vec<(usize, usize, usize, u64)> = in_order(members)
        .into_iter()
        .map(|position| {
            let seed = hash(members[position].key.as_bytes());
            let offset = (seed % size as u64) as usize;
            let skip = (mix(seed) % (size as u64 - 1)) as usize + 1;
            (position, offset, skip, 0)
        })
        .collect();
    let mut slots = vec![FREE; size];
    let mut free = size;
    while free > 0 {
        for (position, next, skip, credit) in &mut turns {
            *credit += u64::from(members[*position].weight.max(1));
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            while slots[*next] != FREE {
                *next = (*next + *skip) % size;
            }
            slots[*next] = *position as u32;
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    slots.into()
}

/// Positions by key: the order of turns must not depend on how a caller sorts its endpoints.
fn in_order(members: &[Member<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_unstable_by_key(|&position| members[position].key);
    order
}

fn fingerprint(members: &[Member<'_>]) -> u64 {
    members.iter().fold(members.len() as u64, |print, member| {
        mix(print ^ hash(member.key.as_bytes())).wrapping_add(mix(u64::from(member.weight)))
    })
}

/// Spreads what differs in any bit over all bits: the finaliser of MurmurHash3 (Appleby).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ bits >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

#[cfg(test)]
impl Table {
    /// Points or slots.
    pub(super) fn places(&self) -> usize {
        match &self.places {
            Places::Ring(points) => points.len(),
            Places::Maglev(slots) => slots.len(),
        }
    }
}
