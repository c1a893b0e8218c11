package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// exchange is a request and the answer that it must get, its varying fields blank.
type exchange struct{ request, answer []byte }

// readAll returns the exchanges of a file: for each a length (4 bytes, big endian) and a request, a length and an
// answer.
func readAll(name string, vary *blanks) ([]exchange, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	known := map[string][]byte{} // many requests have the same answer
	var exchanges []exchange
	for rest := bytes.NewBuffer(data); rest.Len() > 0; {
		request, answer := part(rest), part(rest)
		if request == nil || answer == nil {
			return nil, io.ErrUnexpectedEOF
		}
		if _, ok := known[string(answer)]; !ok {
			if known[string(answer)], err = blanked(nil, answer, vary); err != nil {
				return nil, err
			}
		}
		exchanges = append(exchanges, exchange{request, known[string(answer)]})
	}
	if len(exchanges) == 0 {
		return nil, errors.New("there are no requests")
	}
	return exchanges, nil
}

// part takes a length, and so many bytes; nil where they are not all there.
func part(rest *bytes.Buffer) []byte {
	length := rest.Next(4)
	if len(length) < 4 || int(binary.BigEndian.Uint32(length)) > rest.Len() {
		return nil
	}
	return append([]byte{}, rest.Next(int(binary.BigEndian.Uint32(length)))...)
}

// blanks are the fields of a message that need not be as expected, as a tree: a leaf differs from answer to answer, and
// the fields of an unordered message come in any order.
type blanks struct {
	below     map[protowire.Number]*blanks
	unordered bool
}

// parse returns the tree of paths such as 7,1.1.9; a path that ends with ~ is of a message that is unordered.
func parse(paths string) (*blanks, error) {
	tree := &blanks{}
	for _, path := range strings.FieldsFunc(paths, func(r rune) bool { return r == ',' }) {
		node := tree
		for _, word := range strings.Split(path, ".") {
			if word == "~" {
				node.unordered = true
				continue
			}
			number, err := strconv.ParseInt(word, 10, 32)
			if err != nil {
				return nil, err
			}
			if node.below == nil {
				node.below = map[protowire.Number]*blanks{}
			}
			below := node.below[protowire.Number(number)]
			if below == nil {
				below = &blanks{}
				node.below[protowire.Number(number)] = below
			}
			node = below
		}
	}
	return tree, nil
}

// blanked appends a message with its varying fields empty: they must be there, whatever they hold.
func blanked(to, message []byte, vary *blanks) ([]byte, error) {
	var fields [][]byte
	start := len(to)
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return to, protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return to, protowire.ParseError(size)
		}
		field := message[:tag+size]
		message = message[tag+size:]
		below := vary.below[number]
		if vary.unordered {
			fields = append(fields, field)
		}
		switch {
		case below == nil:
			to = append(to, field...)
		case below.below == nil && !below.unordered:
			to = protowire.AppendTag(to, number, kind)
		default:
			value, length := protowire.ConsumeBytes(field[tag:])
			if length < 0 {
				return to, protowire.ParseError(length)
			}
			var err error
			if to, err = blanked(protowire.AppendTag(to, number, kind), value, below); err != nil {
				return to, err
			}
		}
	}
	if vary.unordered { // such a message has no varying fields of its own
		slices.SortFunc(fields, bytes.Compare)
		to = to[:start]
		for _, field := range fields {
			to = append(to, field...)
		}
	}
	return to, nil
}

// number returns a number that stands in a field of a message; zero where it is not there.
func number(message []byte, field protowire.Number) uint64 {
	for len(message) > 0 {
		found, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return 0
		}
		if found == field && kind == protowire.VarintType {
			value, _ := protowire.ConsumeVarint(message[tag:])
			return value
		}
		size := protowire.ConsumeFieldValue(found, kind, message[tag:])
		if size < 0 {
			return 0
		}
		message = message[tag+size:]
	}
	return 0
}
