"""The vocabulary: states, frozen values, outcomes, the retry rule, the exception tree."""
