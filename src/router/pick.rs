//! Which worker: pure.
//!
//! Two random choices, the less loaded of them wins (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001). Always taking the least loaded one would send every router that shares a late view to the same
//! worker; so they are spread, and each counts what it has sent itself at once.

use rand::{Rng, RngExt};

/// How many random pairs to try before looking for those that have room.
const PAIRS: usize = 4;

/// Picks one of some workers. `load` tells a worker's share of places taken, or `None` when it cannot take the task.
/// `around` gives those of them that may take it, in their order: from one on to the end, and then from the beginning.
pub(super) fn pick<R: Iterator<Item = usize>>(
    workers: &[usize],
    random: &mut impl Rng,
    load: impl Fn(usize) -> Option<f64>,
    around: impl FnOnce(usize) -> R,
) -> Option<usize> {
    let count = workers.len();
    if count == 0 {
        return None;
    }
    for _ in 0..PAIRS {
        let first = random.random_range(0..count);
        let second = (first + random.random_range(0..count.max(2) - 1) + 1) % count;
        if let Some(picked) = less_loaded(workers[first], workers[second], &load) {
            return Some(picked);
        }
    }
    let start = workers[random.random_range(0..count)];
    let mut with_room = around(start).filter(|worker| load(*worker).is_some());
    let first = with_room.next()?;
    less_loaded(first, with_room.next().unwrap_or(first), &load)
}

fn less_loaded(first: usize, second: usize, load: &impl Fn(usize) -> Option<f64>) -> Option<usize> {
    match (load(first), load(second)) {
        (Some(first_load), Some(second_load)) if second_load < first_load => Some(second),
        (Some(_), _) => Some(first),
        (None, Some(_)) => Some(second),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn pick(count: usize, random: &mut SmallRng, load: impl Fn(usize) -> Option<f64>) -> Option<usize> {
        let all: Vec<_> = (0..count).collect();
        super::pick(&all, random, load, |from| (0..count).map(move |step| (from + step) % count))
    }

    #[test]
    fn the_only_worker_with_room_is_found_among_many() {
        let mut random = SmallRng::seed_from_u64(1);
        for only in [0, 17, 999] {
            assert_eq!(pick(1000, &mut random, |index| (index == only).then_some(0.5)), Some(only));
        }
        assert_eq!(pick(1000, &mut random, |_| None), None);
        assert_eq!(pick(0, &mut random, |_| Some(0.0)), None);
        assert_eq!(pick(1, &mut random, |_| Some(0.0)), Some(0));
    }

    #[test]
    fn of_a_large_fleet_few_are_looked_at() {
        let mut random = SmallRng::seed_from_u64(5);
        let all: Vec<_> = (0..4_000).collect();
        for with_room in [&[][..], &[7], &[7, 3_000]] {
            let looked_at = Cell::new(0);
            let load = |worker: usize| {
                looked_at.set(looked_at.get() + 1);
                with_room.contains(&worker).then_some(0.5)
            };
            let picked = super::pick(&all, &mut random, load, |_| with_room.iter().copied());
            assert_eq!(picked.is_some(), !with_room.is_empty());
            assert!(looked_at.get() <= PAIRS * 2 + 4, "{}", looked_at.get());
        }
    }

    #[test]
    fn two_choices_keep_the_fleet_even() {
        let mut random = SmallRng::seed_from_u64(2);
        let mut tasks = [0u32; 100];
        for _ in 0..10_000 {
            let picked = pick(100, &mut random, |index| Some(f64::from(tasks[index]))).expect("all have room");
            tasks[picked] += 1;
        }
        let (least, most) = (tasks.iter().min().expect("100"), tasks.iter().max().expect("100"));
        assert!(most - least <= 10, "random placement would spread by about 50: {least} to {most}");
    }

    #[test]
    fn routers_that_share_a_late_view_are_no_herd() {
        const WORKERS: usize = 100;
        const SLOTS: u32 = 100;
        let (routers, picks) = (16, 125);
        let mut random = SmallRng::seed_from_u64(4);
        let heard: Vec<u32> = (0..WORKERS).map(|_| random.random_range(10..60)).collect();
        let mut sent = [0u32; WORKERS];
        for _ in 0..routers {
            let mut own = [0u32; WORKERS];
            for _ in 0..picks {
                let load = |index: usize| Some(f64::from(heard[index] + own[index]) / f64::from(SLOTS));
                own[pick(WORKERS, &mut random, load).expect("all have room")] += 1;
            }
            (0..WORKERS).for_each(|index| sent[index] += own[index]);
        }
        let (most, share) = (sent.iter().max().expect("100"), routers * picks / WORKERS as u32);
        assert!(*most <= share * 4, "{most}, where {share} are each worker's share");
    }

    #[test]
    fn of_two_workers_both_are_compared() {
        let mut random = SmallRng::seed_from_u64(3);
        for _ in 0..100 {
            assert_eq!(pick(2, &mut random, |index| Some([0.9, 0.1][index])), Some(1));
        }
    }
}
