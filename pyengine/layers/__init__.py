"""What model graphs are made of: rotary tables, the context of one forward pass, and the building blocks of a layer."""
