// What this CPU and this kernel let us use.
#pragma once

#include <string>
#include <vector>

namespace trivet {

bool cpu_has_avx2();    // AVX2, FMA and F16C, with the operating system saving the registers
bool cpu_has_avx512();  // F, BW, VL, DQ and VNNI, with the operating system saving the registers
bool cpu_has_avx512_bf16();  // bf16 products besides
bool cpu_has_amx();     // tile, int8 and bf16 as the CPU says
bool cpu_is_amd();
// Asks the kernel once a process for the tile registers and reads the answer back. A refusal means "no AMX" (the kernel
// refuses, for example, when an installed alternate signal stack is too small).
bool amx_permitted();

std::vector<std::string> available_isas();  // worst first: "baseline", "avx2", "avx512", "avx512_bf16", "amx"
std::string isa();
std::string twin_of(const std::string& name);  // the plain table that gives the tier's bits; "": no such tier
// Why tiers that this CPU seems to have are not available: a sentence each; usually empty.
std::vector<std::string> isa_notes();
// False: not available here. A tier, or a twin for tests. Not to be called while a step runs.
bool set_isa(const std::string& name);

}  // namespace trivet
