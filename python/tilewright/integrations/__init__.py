"""tilewright in other libraries: each module here is imported by hand and needs the library it is named after."""
