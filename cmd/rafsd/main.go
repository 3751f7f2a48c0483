// Command rafsd serves RAFS images to virtual machines over vhost-user-fs, and
// makes and examines them.
package main

import "os"

func main() { os.Exit(newApp().run(os.Args)) }
