fn main(){
 let a:Vec<String>=std::env::args().skip(2).collect();
 let base=std::env::args().nth(1).unwrap().parse().unwrap();
 let l:Vec<_>=a.chunks(2).map(|c|(std::fs::read(&c[0]).unwrap(),std::fs::read(&c[1]).unwrap())).collect();
 varve_delta::experiment::pairs(&l, base);
}
