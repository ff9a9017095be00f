//! Guest side.
