//! The demo's instructions: what to do with a picture of clothing, and what comes out of it. Some make another class of the same
//! family, whose target the base teacher draws from the noised source (SDEdit, arXiv 2108.01073); the others have one exact answer.

use crate::data::fashion_mnist::{CLASS_NAMES, IMAGE_SHAPE};

/// What an instruction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A picture of this class, an index into [`CLASS_NAMES`].
    Class(usize),
    /// Left and right exchanged.
    Mirror,
    /// Upside down.
    TurnOver,
    /// Light and dark exchanged.
    Invert,
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The words, at most four.
    pub prompt: &'static str,
    /// What they ask for.
    pub change: Change,
}

/// Clothing for the upper body: t-shirt, pullover, dress, coat, shirt.
const TOPS: [usize; 5] = [0, 2, 3, 4, 6];
/// Shoes: sandal, sneaker, ankle boot.
const SHOES: [usize; 3] = [5, 7, 9];

/// All instructions.
pub const INSTRUCTIONS: [Instruction; 10] = [
    Instruction { prompt: "make a t-shirt", change: Change::Class(0) },
    Instruction { prompt: "make a pullover", change: Change::Class(2) },
    Instruction { prompt: "make a dress", change: Change::Class(3) },
    Instruction { prompt: "make a coat", change: Change::Class(4) },
    Instruction { prompt: "make a sandal", change: Change::Class(5) },
    Instruction { prompt: "make a sneaker", change: Change::Class(7) },
    Instruction { prompt: "make a boot", change: Change::Class(9) },
    Instruction { prompt: "mirror it", change: Change::Mirror },
    Instruction { prompt: "turn it over", change: Change::TurnOver },
    Instruction { prompt: "invert it", change: Change::Invert },
];

impl Instruction {
    /// Whether a picture of a class can be asked to change so: into another class of its own family, or in any exact way.
    pub fn suits(&self, class: usize) -> bool {
        match self.change {
            Change::Class(target) => {
                target != class && [&TOPS[..], &SHOES[..]].iter().any(|family| family.contains(&class) && family.contains(&target))
            }
            _ => true,
        }
    }

    /// What the base teacher calls the result.
    pub fn caption(&self) -> Option<&'static str> {
        match self.change {
            Change::Class(class) => CLASS_NAMES.get(class).copied(),
            _ => None,
        }
    }

    /// The one right answer for a picture `[1, 32, 32]`, where there is one.
    pub fn exact(&self, image: &[f32]) -> Option<Vec<f32>> {
        let [_, height, width] = IMAGE_SHAPE;
        let moved = |at: &dyn Fn(usize, usize) -> usize| (0..height * width).map(|i| image[at(i / width, i % width)]).collect();
        match self.change {
            Change::Class(_) => None,
            Change::Mirror => Some(moved(&|y, x| y * width + width - 1 - x)),
            Change::TurnOver => Some(moved(&|y, x| (height - 1 - y) * width + x)),
            Change::Invert => Some(image.iter().map(|value| -value).collect()),
        }
    }
}

/// The instruction of a prompt.
pub fn instruction(prompt: &str) -> Option<&'static Instruction> {
    INSTRUCTIONS.iter().find(|instruction| instruction.prompt == prompt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_suit_their_families() {
        let coat = instruction("make a coat").unwrap();
        let suits: Vec<usize> = (0..10).filter(|class| coat.suits(*class)).collect();
        assert_eq!((suits.as_slice(), coat.caption()), (&[0, 2, 3, 6][..], Some("coat")));
        assert_eq!((0..10).filter(|class| instruction("make a boot").unwrap().suits(*class)).count(), 2);
        assert!((0..10).all(|class| instruction("invert it").unwrap().suits(class)));
        assert!(instruction("make it large").is_none());
        assert!(INSTRUCTIONS.iter().all(|i| i.prompt.split([' ', '-']).count() <= 4));
    }

    #[test]
    fn exact_answers_are_exact() {
        let image: Vec<f32> = (0..1024).map(|i| i as f32 / 512.0 - 1.0).collect();
        let answer = |prompt: &str| instruction(prompt).unwrap().exact(&image);
        let (mirror, over, inverted) = (answer("mirror it").unwrap(), answer("turn it over").unwrap(), answer("invert it").unwrap());
        assert_eq!((mirror[0], mirror[33]), (image[31], image[62]));
        assert_eq!((over[0], over[33]), (image[31 * 32], image[30 * 32 + 1]));
        assert_eq!(inverted[7], -image[7]);
        assert_eq!(answer("make a coat"), None);
    }
}
