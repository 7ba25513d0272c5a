"""The published networks that Zeus is compared with (Table 2), each with early, hybrid and late fusion."""
