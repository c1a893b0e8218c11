// A service in Go that asks Texture Auth, as far as tests need one.
//
//	program story           plays the story of the service and checks every answer
//	program failure CASE    asks while something is wrong, and prints 'FAILURE CASE CODE REASON'
//
// tests/languages starts it, and says where the service is.
package main

import (
	"fmt"
	"os"
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "story":
		playStory(os.Getenv("NAME"))
	case len(os.Args) == 3 && os.Args[1] == "failure":
		playFailure(os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: program story | program failure CASE")
		os.Exit(2)
	}
}
