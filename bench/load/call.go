package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// called is how calls went. Latencies are in microseconds.
type called struct {
	Count      int     `json:"count"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	Errors     int     `json:"errors"`
	Wrong      int     `json:"wrong"`
	Complaint  string  `json:"complaint"`
	P50        float64 `json:"p50"`
	P99        float64 `json:"p99"`
}

func call(arguments []string) (any, error) {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	to := targeted(flags)
	method := flags.String("method", "", "the method, /package.Service/Method")
	file := flags.String("file", "", "the requests and answers")
	vary := flags.String("vary", "", "paths of fields that vary, such as 7,1.1.9")
	connections := flags.Int("connections", 1, "connections to each address")
	concurrency := flags.Int("concurrency", 1, "calls in flight at a time, over all connections")
	seconds := flags.Float64("seconds", 1, "how long to go on at most")
	warm := flags.Float64("warm", 0, "how long to call before counting begins")
	once := flags.Bool("once", false, "stop after the last request, and do not begin again")
	flags.Parse(arguments)

	tree, err := parse(*vary)
	if err != nil {
		return nil, err
	}
	exchanges, err := readAll(*file, tree)
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := to.context(*warm + *seconds + 30)
	defer cancel()
	if err != nil {
		return nil, err
	}
	clients, err := to.connect(*connections)
	if err != nil {
		return nil, err
	}
	caller := &caller{clients: clients, method: *method, exchanges: exchanges, vary: tree, once: *once}
	if *warm > 0 {
		if done := caller.during(ctx, *concurrency, *warm); done.Errors+done.Wrong > 0 {
			return done, nil
		}
	}
	return caller.during(ctx, *concurrency, *seconds), nil
}

type caller struct {
	clients   []*grpc.ClientConn
	method    string
	exchanges []exchange
	vary      *blanks
	once      bool
	next      atomic.Int64
}

// during calls for so many seconds, and tells how it went.
func (c *caller) during(ctx context.Context, concurrency int, seconds float64) called {
	workers := make([]worker, concurrency)
	before, began := used(), time.Now()
	until := began.Add(lasting(seconds))
	var group sync.WaitGroup
	for number := range workers {
		group.Go(func() { workers[number].work(ctx, c, c.clients[number%len(c.clients)], until) })
	}
	group.Wait()
	total := called{Seconds: time.Since(began).Seconds(), CPUSeconds: used() - before}
	var latencies []float64
	for _, each := range workers {
		latencies = append(latencies, each.latencies...)
		total.Errors += each.errors
		total.Wrong += each.wrong
		if total.Complaint == "" {
			total.Complaint = each.complaint
		}
	}
	slices.Sort(latencies)
	total.Count, total.P50, total.P99 = len(latencies), at(latencies, 0.5), at(latencies, 0.99)
	return total
}

type worker struct {
	latencies     []float64
	errors, wrong int
	complaint     string
}

// work makes one call after the other. It gives up after a few that failed: they say what there is to say.
func (w *worker) work(ctx context.Context, c *caller, client *grpc.ClientConn, until time.Time) {
	for w.errors+w.wrong < 3 {
		number := c.next.Add(1) - 1
		started := time.Now()
		if started.After(until) || (c.once && number >= int64(len(c.exchanges))) {
			return
		}
		given := c.exchanges[number%int64(len(c.exchanges))]
		var answer []byte
		err := client.Invoke(ctx, c.method, given.request, &answer)
		taken := time.Since(started)
		if err != nil {
			w.errors++
			w.complaint = err.Error()
			continue
		}
		if found, err := blanked(nil, answer, c.vary); err != nil || !bytes.Equal(found, given.answer) {
			w.wrong++
			w.complaint = fmt.Sprintf("answer %x, not %x", found[:min(len(found), 400)], given.answer[:min(len(given.answer), 400)])
			continue
		}
		w.latencies = append(w.latencies, float64(taken.Nanoseconds())/1e3)
	}
}

func at(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}
