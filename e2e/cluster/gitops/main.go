// Says how GitOps tools see Kubernetes objects: Flux by its library kstatus, Argo CD by a health check in Lua.
//
//	gitops kstatus       < list of objects as JSON
//	gitops lua FILE      < the same
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

type seen struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	see := byKstatus
	switch {
	case len(args) == 1 && args[0] == "kstatus":
	case len(args) == 2 && args[0] == "lua":
		script, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		see = func(object map[string]any) (seen, error) { return byLua(string(script), object) }
	default:
		return fmt.Errorf("want kstatus, or lua and a file")
	}
	var objects []map[string]any
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return err
	}
	answers := []seen{}
	for _, object := range objects {
		answer, err := see(object)
		if err != nil {
			return err
		}
		answers = append(answers, answer)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func byKstatus(object map[string]any) (seen, error) {
	// Not plain JSON's numbers: Kubernetes' own decoder has whole numbers as such, and kstatus relies on it.
	text, err := json.Marshal(object)
	if err != nil {
		return seen{}, err
	}
	var it unstructured.Unstructured
	if err := it.UnmarshalJSON(text); err != nil {
		return seen{}, err
	}
	result, err := status.Compute(&it)
	if err != nil {
		return seen{}, err
	}
	return seen{string(result.Status), result.Message}, nil
}

// As Argo CD does in util/lua: a bare interpreter with the few libraries that it opens, the object as `obj`, a table with
// status and message in return.
func byLua(script string, object map[string]any) (seen, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
	} {
		state.Push(state.NewFunction(library.open))
		state.Push(lua.LString(library.name))
		state.Call(1, 0)
	}
	state.SetGlobal("obj", luajson.DecodeValue(state, any(object)))
	if err := state.DoString(script); err != nil {
		return seen{}, err
	}
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return seen{}, fmt.Errorf("the script gave no table but %s", state.Get(-1).Type())
	}
	return seen{answer.RawGetString("status").String(), answer.RawGetString("message").String()}, nil
}
