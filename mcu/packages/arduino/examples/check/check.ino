@sketch_ino@
