//! The hash of directory indexes: half MD4 over a name (kernel documentation, `directory.rst`, "Hash Tree
//! Directories"; `fs/ext4/hash.c`).

/// `s_def_hash_version`, `dx_root.info.hash_version`: half MD4.
pub(crate) const HALF_MD4: u8 = 1;
/// `s_flags`: names are hashed as signed bytes, whatever machine reads the image.
pub(crate) const SIGNED_HASH: u32 = 1;

/// `EXT4_HTREE_EOF_32BIT` marks the end of a directory; names with that hash get the one before it.
const LAST: u32 = (0x7fff_ffff - 1) << 1;
const END: u32 = 0x7fff_ffff << 1;

/// MD4's initial state, used if the seed is all zeros.
const MD4_START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
/// MD4's constants of rounds two and three, from √2 and √3 (RFC 1320).
const ROUND_TWO: u32 = 0x5a82_7999;
const ROUND_THREE: u32 = 0x6ed9_eba1;
/// Bytes of a name that one transform consumes.
const CHUNK: usize = 32;

/// The hash of a name: the part that an index stores, then the part that orders names with an equal one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameHash {
    pub major: u32,
    pub minor: u32,
}

/// The hash function of one filesystem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameHasher {
    start: [u32; 4],
}

impl NameHasher {
    /// `seed` is the superblock's `s_hash_seed`.
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        if seed == [0; 16] {
            return NameHasher { start: MD4_START };
        }
        let word = |at: usize| u32::from_le_bytes([seed[at], seed[at + 1], seed[at + 2], seed[at + 3]]);
        NameHasher { start: [word(0), word(4), word(8), word(12)] }
    }

    pub(crate) fn hash(&self, name: &[u8]) -> NameHash {
        let mut state = self.start;
        for at in (0..name.len()).step_by(CHUNK) {
            transform(&mut state, &words(&name[at..]));
        }
        let major = state[1] & !1;
        NameHash { major: if major == END { LAST } else { major }, minor: state[2] }
    }
}

/// Returns the next 32 bytes of a name as eight words, padded with the number of bytes that are left.
fn words(rest: &[u8]) -> [u32; 8] {
    // Names have at most 255 bytes.
    let pad = u32::from_ne_bytes([rest.len() as u8; 4]);
    let mut words = [pad; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes.iter().fold(pad, |word, &byte| (byte as i8 as u32).wrapping_add(word << 8));
    }
    words
}

/// Three rounds of eight steps each: MD4 over half of its block.
fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    fn choose(x: u32, y: u32, z: u32) -> u32 {
        z ^ (x & (y ^ z))
    }
    fn majority(x: u32, y: u32, z: u32) -> u32 {
        (x & y) | ((x ^ y) & z)
    }
    fn parity(x: u32, y: u32, z: u32) -> u32 {
        x ^ y ^ z
    }
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, ROUND_TWO, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, ROUND_THREE, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            let turned = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(input[word])
                .wrapping_add(constant)
                .rotate_left(shifts[step % 4]);
            (a, b, c, d) = (d, turned, b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}
