//! Tests of the engine as a whole.
/// A deliberate mistake in the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutation {
    PublishBeforeProtect,
    HintAfterClose,
    RunBeforeHandOff,
}

pub(crate) fn after_close(_dirty: &mut crate::bitmap::Bitmap, _round: &crate::round::Round) {}
