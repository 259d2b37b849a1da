fn main(){
 for p in std::env::args().skip(1) {
  let b=std::fs::read(&p).unwrap();
  let t=std::time::Instant::now();
  let d=&b[10..b.len()-8];
  let (r,pt)=preflate_rs::preflate_whole_deflate_stream(d,false,1<<28).unwrap();
  println!("{p} {} -> {} corr {} {:?}",b.len(),pt.text().len(),r.corrections.len(),t.elapsed());
  let t=std::time::Instant::now();
  let o=preflate_rs::recreate_whole_deflate_stream(pt.text(),&r.corrections).unwrap();
  println!("same {} {:?}",o==d,t.elapsed());
 }
}
