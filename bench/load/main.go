// Command load puts gRPC servers under load with requests made beforehand, and checks every answer.
//
// It knows no message types: requests are bytes from a file, and so are the answers that they must get. The process
// has one core, so a request costs it as little as can be: one call without reflection, and one comparison.
//
//	load call    calls as often as it can, and tells how often, how fast, and what was wrong
//	load probe   has a key revoked, and tells when that returned and when each server denied first
//	load serve   answers each call with the same bytes: what a server costs that does nothing
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

func main() {
	commands := map[string]func([]string) (any, error){"call": call, "probe": probe, "serve": serve}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: load call|probe|serve FLAGS")
		os.Exit(2)
	}
	result, err := commands[os.Args[1]](os.Args[2:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// target is who is called and how: the flags that commands share.
type target struct{ addresses, bearer *string }

func targeted(flags *flag.FlagSet) target {
	return target{
		flags.String("addresses", "", "HOST:PORT[,HOST:PORT] to call"),
		flags.String("bearer-file", "", "a file with the caller's key"),
	}
}

// context returns the context of all calls, which ends after so many seconds whatever happens.
func (t target) context(seconds float64) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lasting(seconds))
	if *t.bearer == "" {
		return ctx, cancel, nil
	}
	key, err := os.ReadFile(*t.bearer)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(key))), cancel, err
}

// connect returns so many connections to each address.
func (t target) connect(each int) ([]*grpc.ClientConn, error) {
	var clients []*grpc.ClientConn
	for _, address := range strings.Split(*t.addresses, ",") {
		for range each {
			client, err := grpc.NewClient("passthrough:///"+address,
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{}), grpc.MaxCallRecvMsgSize(64<<20)))
			if err != nil {
				return nil, err
			}
			clients = append(clients, client)
		}
	}
	return clients, nil
}

// raw is a codec that passes bytes through.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// lasting returns a length of time.
func lasting(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// used returns the seconds of processor time that this process has used.
func used() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
