//! Operators' keys for the API: a file with a line for each, `NAME KEY`.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// The fewest letters that a key may have: 32 of base64 are 192 bits.
const KEY_LETTERS_MIN: usize = 32;

/// The keys, by name.
pub struct ApiKeys {
    /// What is compared is a digest, so that the time that it takes says nothing of the key.
    digests: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").finish_non_exhaustive()
    }
}

fn digest_of(text: &str) -> Vec<u8> {
    digest(&SHA256, text.as_bytes()).as_ref().to_vec()
}

impl ApiKeys {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, and in which line; never the key itself.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut digests = Vec::new();
        for (number, words) in lines(path)? {
            let wrong = |why: &str| format!("{}: line {number}: {why}", path.display());
            let [name, key] = &words[..] else {
                return Err(wrong("is not NAME KEY"));
            };
            if key.len() < KEY_LETTERS_MIN {
                return Err(wrong(&format!(
                    "the key has fewer than {KEY_LETTERS_MIN} letters: `conman token api-key {name}` makes one"
                )));
            }
            digests.push((name.clone(), digest_of(key)));
        }
        if digests.is_empty() {
            return Err(format!("{} has no key", path.display()));
        }
        Ok(Self { digests })
    }

    /// Whose key it is.
    pub fn name_of(&self, key: &str) -> Option<&str> {
        let given = digest_of(key);
        let found = self.digests.iter().find(|(_, digest)| *digest == given);
        found.map(|(name, _)| name.as_str())
    }
}

/// A new key: 256 random bits in letters.
///
/// # Errors
/// When this machine has no randomness.
pub fn new_api_key() -> std::io::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random()?))
}

pub(super) fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| std::io::Error::other("this machine has no randomness"))?;
    Ok(bytes)
}

/// The words of each line that is neither empty nor a comment, with its number.
pub(super) fn lines(path: &Path) -> Result<Vec<(usize, Vec<String>)>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("read {}: {error}", path.display()))?;
    let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect();
    Ok(text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| (number, words(line)))
        .collect())
}
