//! Philox4x32-10: random numbers as a pure function of a counter and a key (Salmon et al., 2011).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let product = |which: usize, by: u32| u64::from(MULTIPLIERS[which]) * u64::from(by);
        let (a, b) = (product(0, counter[0]), product(1, counter[2]));
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// 64 uniform bits for output token `index` of choice `choice` under `seed`, and for nothing else.
pub fn random_bits(seed: u64, choice: u32, index: u64) -> u64 {
    let counter = [index as u32, (index >> 32) as u32, choice, 0];
    let [low, high, ..] = philox(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_the_published_vectors() {
        // Random123, tests/kat_vectors, `philox4x32 10`.
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox(counter, key), want, "{counter:x?} {key:x?}");
        }
    }

    #[test]
    fn every_part_of_the_name_of_a_number_matters() {
        let base = random_bits(1, 2, 3);
        for other in [
            random_bits(0, 2, 3),
            random_bits(1 << 40, 2, 3),
            random_bits(1, 0, 3),
            random_bits(1, 2, 0),
            random_bits(1, 2, 3 + (1 << 40)),
        ] {
            assert_ne!(base, other);
        }
    }
}
