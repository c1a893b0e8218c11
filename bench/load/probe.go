package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

const (
	authorizing = "/texture.auth.v1.AuthorizeService/Authorize"
	revoking    = "/texture.auth.v1.KeyService/RevokeKey"
	// Of an AuthorizeResponse: its fields, and their values.
	decision, reason = 1, 2
	allow, deny      = 1, 2
	keyRevoked       = 6
	// How long a probe waits for an answer. None is a no, as the contract has it.
	patience = time.Second
)

// trial is the revocation of one key. Times are in seconds since RevokeKey was called.
type trial struct {
	Returned float64 `json:"returned"`
	Error    string  `json:"error"`
	// For each server, when the first answer came that was not ALLOW, and whether it was no answer at all.
	Denied   []float64 `json:"denied"`
	Answered []bool    `json:"answered"`
	// ALLOWs to questions that were asked after RevokeKey had returned: there must be none.
	Late int `json:"late"`
	// Answers that were neither ALLOW nor KEY_REVOKED.
	Wrong int `json:"wrong"`
}

// probe has the key of each exchange revoked: its request is an Authorize that is allowed, its answer the RevokeKey.
func probe(arguments []string) (any, error) {
	flags := flag.NewFlagSet("probe", flag.ExitOnError)
	to := targeted(flags)
	file := flags.String("file", "", "questions and revocations")
	pause := flags.Float64("pause", 0.001, "seconds from an answer to the next question of a probe")
	after := flags.Float64("after", 0.02, "seconds for which to go on asking after all is over")
	limit := flags.Float64("limit", 30, "seconds that a revocation may take")
	stop := flags.Bool("wait", false, "say 'ready' before each revocation and 'denied' once it is denied everywhere, and wait for a line")
	flags.Parse(arguments)

	exchanges, err := readAll(*file, &blanks{})
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := to.context(600)
	defer cancel()
	if err != nil {
		return nil, err
	}
	clients, err := to.connect(1)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(os.Stdin)
	var trials []trial
	for _, given := range exchanges {
		revocation := &revocation{given: given, pause: lasting(*pause), limit: lasting(*limit), after: lasting(*after)}
		trials = append(trials, revocation.watch(ctx, clients, func(what string) {
			if *stop {
				fmt.Println(what)
				lines.Scan()
			}
		}))
	}
	return trials, nil
}

type revocation struct {
	given               exchange
	pause, limit, after time.Duration
	called              time.Time
	returned            atomic.Int64 // nanoseconds since `called`, zero until then
	over                atomic.Bool
	late, wrong         atomic.Int64
}

// watch lets a probe ask at each server until it denies, and revokes once every one of them has been allowed.
func (r *revocation) watch(ctx context.Context, clients []*grpc.ClientConn, say func(string)) trial {
	done := trial{Denied: make([]float64, len(clients)), Answered: make([]bool, len(clients))}
	var allowed, probing, denied sync.WaitGroup
	revoke := make(chan struct{})
	for number, client := range clients {
		allowed.Add(1)
		denied.Add(1)
		probing.Go(func() {
			if permitted, _ := r.answer(ctx, client); !permitted {
				r.wrong.Add(1)
			}
			allowed.Done()
			<-revoke
			first := true
			for !r.over.Load() {
				permitted, answered := r.answer(ctx, client)
				if !permitted && first {
					first = false
					done.Denied[number], done.Answered[number] = time.Since(r.called).Seconds(), answered
					denied.Done()
				}
				time.Sleep(r.pause)
			}
			if first {
				done.Denied[number] = -1
				denied.Done()
			}
		})
	}
	allowed.Wait()
	say("ready")
	r.called = time.Now()
	close(revoke)
	limited, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	var answer []byte
	if err := clients[0].Invoke(limited, revoking, r.given.answer, &answer); err != nil {
		done.Error = err.Error()
	}
	r.returned.Store(max(1, time.Since(r.called).Nanoseconds()))
	done.Returned = time.Since(r.called).Seconds()
	time.AfterFunc(r.limit, func() { r.over.Store(true) })
	denied.Wait()
	say("denied")
	time.Sleep(r.after)
	r.over.Store(true)
	probing.Wait()
	done.Late, done.Wrong = int(r.late.Load()), int(r.wrong.Load())
	return done
}

// answer asks, and returns whether that is permitted and whether there was an answer.
func (r *revocation) answer(ctx context.Context, client *grpc.ClientConn) (permitted, answered bool) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	late := r.returned.Load() > 0
	var answer []byte
	if err := client.Invoke(limited, authorizing, r.given.request, &answer); err != nil {
		return false, false
	}
	switch number(answer, decision) {
	case allow:
		if late {
			r.late.Add(1)
		}
		return true, true
	case deny:
		if number(answer, reason) == keyRevoked {
			return false, true
		}
	}
	r.wrong.Add(1)
	return false, true
}
