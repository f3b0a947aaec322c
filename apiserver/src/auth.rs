//! Authentication, authorization, reviews and tokens.
