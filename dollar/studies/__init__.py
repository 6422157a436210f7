"""Studies: rows that are trained, measured and compared over seeds; an engine, and a package of content a study."""
