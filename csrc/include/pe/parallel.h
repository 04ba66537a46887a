// SPDX-License-Identifier: Apache-2.0
// The CPU backend's thread pool and its recorder.
//
// Threads: one static partition per call, no work stealing (batch invariance does not need it, dynamic scheduling costs
// more than it gains on dense layers). Workers spin briefly after a call, because the next op is microseconds away,
// then sleep. One call at a time: a second calling thread waits; a call from inside a body runs inline. What a body
// throws reaches the caller.
//
// Recorder: the CPU's counterpart of a CUDA graph. Between begin and end every pe::cpu op of this thread is appended,
// params and all, to a program; replay runs the program with the pool kept awake, without a Python call per op.
// Pointers and sizes are frozen, as in a CUDA graph.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "pe/core.h"

namespace pe::cpu {

void set_num_threads(int n);  // >= 1; the caller is one of them
int num_threads();

// Calls body(begin, end) on each thread with a contiguous share of [0, n), shares being multiples of `grain` (except
// the last); runs inline when n <= grain.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

class Program {
 public:
  void append(std::function<void()> op);
  void replay() const;
  size_t size() const;

 private:
  std::vector<std::function<void()>> ops_;
};

void begin_recording(Program*);  // this thread; the ops also run while they are recorded
void end_recording();
// Every cpu op's public function ends in: run(p, [](const Params& p) {...}) which records when recording and then
// executes.

// "amx", "avx512bf16", "avx2" or "generic": the instruction set in use, at first the best of this machine; may be
// forced (tests) to a lesser one. bf16 dense layers use exactly it; other ops the best form they have that does not
// exceed it. Sums of different instruction sets differ in their last bits, so it is not to be changed while a model
// runs.
const char* isa();
void set_isa(const std::string& name);  // throws pe::Error when the machine lacks it

}  // namespace pe::cpu
