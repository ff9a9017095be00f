use proptest::prelude::*;

use super::*;

#[test]
fn full_map_has_no_bit_beyond_its_length() {
    for len in [0, 1, 63, 64, 65, 128, 130] {
        assert_eq!(Bitmap::full(len).count(), len);
    }
}

#[test]
fn ranges_are_clipped() {
    let mut map = Bitmap::new(70);
    map.set_range(60, u64::MAX);
    assert_eq!(map.runs().collect::<Vec<_>>(), [(60, 10)]);
    map.clear_range(u64::MAX, 5);
    map.set(u64::MAX);
    assert!(!map.test(u64::MAX) && map.test(60) && !map.test(59));
    map.clear_range(64, 6);
    map.or_word(1, 1 << 63 | 8);
    map.or_word(2, 1);
    map.or_word(usize::MAX, 1);
    assert_eq!(map.runs().collect::<Vec<_>>(), [(60, 4), (67, 1)]);
}

#[test]
fn words_of_an_atomic_map_are_taken_once() {
    let mut map = Bitmap::new(130);
    map.set_range(3, 126);
    let shared = AtomicBitmap::from(&map);
    assert_eq!(shared.clear_mask(1, 0xf0), 0xf0);
    assert_eq!(shared.take(1), !0xf0);
    assert_eq!(shared.take(1), 0);
    assert_eq!(shared.set_mask(1, 3), 3);
    assert_eq!(shared.set_mask(1, 7), 4);
    assert_eq!(shared.take(77), 0);
    assert_eq!(shared.count(), 61 + 3 + 1);
}

proptest! {
    #[test]
    fn runs_and_ranges_agree_with_a_vector(len in 1u64..300,
        ops in prop::collection::vec((0u64..320, 0u64..200, any::<bool>()), 0..20)) {
        let mut map = Bitmap::new(len);
        let mut model = vec![false; len as usize];
        for (first, nr, value) in ops {
            if value { map.set_range(first, nr) } else { map.clear_range(first, nr) }
            for bit in first..(first + nr).min(len) { model[bit as usize] = value; }
        }
        prop_assert_eq!(map.count(), model.iter().filter(|b| **b).count() as u64);
        let mut seen = vec![false; len as usize];
        let mut last_end = None;
        for (first, nr) in map.runs() {
            prop_assert!(nr > 0 && last_end != Some(first));
            last_end = Some(first + nr);
            for bit in first..first + nr { seen[bit as usize] = true; }
        }
        prop_assert_eq!(&seen, &model);
        let (from, to) = (len / 3, len - len / 4);
        let inside: Vec<u64> = map.runs_in(from, to).flat_map(|(f, n)| f..f + n).collect();
        prop_assert_eq!(inside, (from..to).filter(|&b| model[b as usize]).collect::<Vec<_>>());
        for (w, word) in map.words().iter().enumerate() {
            for (first, nr) in word_runs(*word) {
                for bit in first..first + nr { prop_assert!(model[w * 64 + bit as usize]); }
            }
        }
    }

    #[test]
    fn what_is_done_to_two_maps_is_done_to_each_of_their_bits(len in 1u64..9000,
        ops in prop::collection::vec((0u8..8, 0u64..9000, 1u64..200), 0..30)) {
        let (mut a, mut b) = (Bitmap::new(len), Bitmap::new(len));
        let (mut model, mut other) = (vec![false; len as usize], vec![false; len as usize]);
        for (op, first, nr) in ops {
            let range = first.min(len) as usize..(first + nr).min(len) as usize;
            match op {
                0 => a.set_range(first, nr),
                1 => a.clear_range(first, nr),
                2 => b.set_range(first, nr),
                3 => a.or(&b),
                4 => a.and(&b),
                5 => a.and_not(&b),
                6 => std::mem::swap(&mut a, &mut b),
                _ if nr < 20 => a.clear_all(),
                _ => a.or_word((first / 64) as usize, 0xf0f),
            }
            for bit in 0..len as usize {
                let (within, was) = (range.contains(&bit), other[bit]);
                let word = bit / 64 == (first / 64) as usize && 0xf0f_u64 >> (bit % 64) & 1 == 1;
                match op {
                    0 => model[bit] |= within,
                    1 => model[bit] &= !within,
                    2 => other[bit] |= within,
                    3 => model[bit] |= was,
                    4 => model[bit] &= was,
                    5 => model[bit] &= !was,
                    6 => (model[bit], other[bit]) = (was, model[bit]),
                    _ if nr < 20 => model[bit] = false,
                    _ => model[bit] |= word,
                }
            }
        }
        prop_assert_eq!(a.count(), model.iter().filter(|bit| **bit).count() as u64);
        let set = |runs: Runs<'_>| runs.flat_map(|(f, n)| f..f + n).collect::<Vec<_>>();
        let expected: Vec<_> = (0..len).filter(|&bit| model[bit as usize]).collect();
        prop_assert_eq!(set(a.runs()), &expected[..]);
        let words = a.nonzero().flat_map(|(w, word)| ones(word).map(move |bit| w * 64 + bit));
        prop_assert_eq!(words.map(|bit| bit as u64).collect::<Vec<_>>(), &expected[..]);
        a.clear_all();
        prop_assert!(a == Bitmap::new(len));
    }
}
